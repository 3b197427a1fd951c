"""A disk of a few megabytes, to be filled."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.checkpoint import last_checkpoint, step_of


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system in memory at a new folder, inside the block.

    Raises:
        PermissionError: this user may not.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        raise PermissionError("to mount a small file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_after(disk: Path, run_dir: Path, step: int) -> None:
    """Fill a disk once the checkpoint of `step` is registered."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        last = last_checkpoint(str(run_dir)) if run_dir.exists() else None
        if last is not None and step_of(last.path) >= step:
            break
        time.sleep(0.02)
    fill(disk)


def fill(disk: Path) -> None:
    """Take all space of a disk, as a file `ballast`."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2
