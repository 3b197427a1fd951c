"""Kill a run's worker, as a machine that fails would."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from pipelines.run_folder import RunFolder
from tests.cluster.nodes import wait_for


def kill_worker_after(run_dir: Path | str, step: int) -> None:
    """SIGKILL this session's train worker once the checkpoint of `step` is registered."""
    wait_for(lambda: RunFolder(str(run_dir)).finished_steps() >= step, seconds=300.0, pause=0.02)
    found = 0
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in process.name() or any("RayTrainWorker" in part for part in process.cmdline()):
            os.kill(process.pid, 9)
            found += 1
    assert found, f"no worker of {run_dir} was there to be killed"
