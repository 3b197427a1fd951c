"""What every Ray worker process of ours does first. It imports no more than that takes, as each one waits for it."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import psutil
import ray

from cluster import surroundings

# The least level that some loggers still say. The first warns of each trial that a sweep stops. The second tells of
# every report, and bears its file's name, which Train's own setting misses.
LOG_LEVELS = {
    "ray.train.v2._internal.execution.controller.placement_group_cleaner": logging.ERROR,
    f"{Path(ray.__file__).parent}/train/v2/_internal/execution/context.py": logging.WARNING,
}
# These say at length what the command's own last line tells (`pipelines/run/causes.py`). Ray Train sets their levels
# anew.
SILENT = ("ray.train.v2._internal.util", "ray.train.v2._internal.execution.controller.controller")


def prepare_worker() -> None:
    """Prepare a Ray worker process as `connect` prepares the driver's. Ray calls it when the process starts."""
    surroundings.prepare()
    quieten()
    # Without GPUs workers find each other by the host's name, which on many machines means 127.0.0.1 or 127.0.1.1.
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    # Ray Train looks the cluster up by this variable, and without it fails where two clusters run on one machine.
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface that has an IP address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return None


def quieten() -> None:
    """Silence, in this process, what Ray says to its own developers."""
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name in SILENT:
        logging.getLogger(name).disabled = True
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
