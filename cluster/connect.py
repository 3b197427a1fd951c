"""How a command reaches Ray: a Ray of its own on this machine, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.data

# Defaults for this process and every Ray worker; a value that the user has set stays.
ENVIRONMENT = {
    # How often Train's controller looks at its workers. At its default of 2 s every checkpoint waits 1.6 s for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Train would show each printed line twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # In the workers too, where Ray Data would draw bars over our own.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Acknowledges that Ray leaves CUDA_VISIBLE_DEVICES alone for tasks without a GPU, or it warns at every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Where addresses have no names, torch warns of it at every connection between workers.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}

# The least level that some loggers still say. The first warns of each trial that a sweep stops. The second tells of
# every report, and bears its file's name, which Train's own setting misses.
LOG_LEVELS = {
    "ray.train.v2._internal.execution.controller.placement_group_cleaner": logging.ERROR,
    f"{Path(ray.__file__).parent}/train/v2/_internal/execution/context.py": logging.WARNING,
}


@contextmanager
def connect(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Have Ray running inside the block, and leave it at the end.

    A Ray that runs in this process already is used as it is. Otherwise `address`, or else the variable RAY_ADDRESS,
    names a cluster to join; this package and this release of Ray must be installed on its nodes. Without an address a
    Ray starts on this machine alone and ends with the block. Ray then keeps a token at ~/.ray/auth_token, which no
    other user should read; nodes of a cluster with RAY_AUTH_MODE=token must all hold the same.

    Args:
        address: `auto` for the cluster that this machine is a node of, or `HOST:PORT`, for a node of that one.
        num_cpus: CPUs that a Ray on this machine alone may use; None for all.

    Raises:
        ValueError: no cluster answers at the address, or it is no address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ |= ENVIRONMENT | os.environ
    quieten()
    logging.getLogger("ray.data").setLevel(os.environ["RAY_DATA_LOG_LEVEL"])
    ray.data.DataContext.get_current().enable_progress_bars = False  # it may have read the variable already
    _start(address or os.environ.get("RAY_ADDRESS"), num_cpus)
    try:
        with named_in_environment(ray.get_runtime_context().gcs_address):
            yield
    finally:
        ray.shutdown()


@contextmanager
def named_in_environment(address: str) -> Iterator[None]:
    """Have this process's questions about a cluster, and its jobs, go to the one at `address`, inside the block.

    Ray's state API and its clients of job servers ask the cluster that these variables name, whatever address they are
    given. Without them the state API looks for one on this machine, where there may be others.
    """
    before = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    os.environ["RAY_ADDRESS"] = address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        os.environ |= {name: value for name, value in before.items() if value is not None}


def _start(address: str | None, num_cpus: int | None) -> None:
    local: dict[str, Any] = {}
    if address is None:
        # Ray Train learns by the dashboard which runs have ended. Without one it asks that of any other Ray on this
        # machine, which knows nothing of them, and takes the machine from a run that goes on.
        local = {"num_cpus": num_cpus, "include_dashboard": True}
        # It watches for a cloud that takes a node back, which does not befall a machine that runs alone.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    workers = {
        "env_vars": {name: os.environ[name] for name in ENVIRONMENT},
        "worker_process_setup_hook": "cluster.connect.prepare_worker",
    }
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    try:
        if address is not None and address != "auto":
            knock(address)
        ray.init(address, runtime_env=workers, logging_level=logging.ERROR, **local)
    except OSError as error:
        raise ValueError(f"address: no Ray cluster answers at {address}: {error}") from error


def knock(address: str) -> None:
    """Try the address once, as Ray itself would try a wrong one for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"address must be auto, HOST:PORT or ray://HOST:PORT, got {address!r}")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def prepare_worker() -> None:
    """Prepare a Ray worker process as `connect` prepares the driver's. Ray calls it when the process starts."""
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
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
