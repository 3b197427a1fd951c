"""Kill a run's workers, as a machine that fails would, or have them stand still."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipelines.run.folder import RunFolder
from tests.cluster.nodes import wait_for

SECONDS = 300.0  # the longest that a run may take to a step


def kill_worker_after(run_dir: Path | str, step: int, why: Callable[[], str] = lambda: "") -> None:
    """SIGKILL this session's train workers once the checkpoint of `step` is whole."""
    _signal_workers(signal.SIGKILL, run_dir, step, why)


@contextmanager
def standing_still(run_dir: Path | str, step: int, why: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Have this session's train workers stand still inside the block, once the checkpoint of `step` is whole."""
    workers = _signal_workers(signal.SIGSTOP, run_dir, step, why)
    try:
        yield
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)


def _signal_workers(number: int, run_dir: Path | str, step: int, why: Callable[[], str]) -> list[psutil.Process]:
    wait_for(lambda: RunFolder(str(run_dir)).finished_steps() >= step, SECONDS, why, pause=0.02)
    workers = [process for process in psutil.Process().children(recursive=True) if _trains(process)]
    assert workers, f"no worker of {run_dir} was there any more: {why()}"
    for worker in workers:
        os.kill(worker.pid, number)
    return workers


def _trains(process: psutil.Process) -> bool:
    try:
        return any("RayTrainWorker" in part for part in (process.name(), *process.cmdline()))
    except psutil.NoSuchProcess:
        return False
