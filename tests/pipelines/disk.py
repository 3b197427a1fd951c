"""A disk of a few megabytes, to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.run.folder import RunFolder
from tests.cluster.nodes import wait_for


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
    wait_for(lambda: RunFolder(str(run_dir)).finished_steps() >= step, pause=0.02)
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
