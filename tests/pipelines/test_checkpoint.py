"""Ray's register of a run's checkpoints, which may be read while Ray rewrites it, and files that are no checkpoints."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import ray.train
import torch

from pipelines.checkpoint import FILE, last_checkpoint, read_state

REGISTER = "checkpoint_manager_snapshot.json"


def test_no_register_is_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(str(tmp_path / "never-started")) is None
    assert last_checkpoint(str(tmp_path)) is None


def test_a_register_in_the_middle_of_a_write_is_read_again(tmp_path: Path) -> None:
    register = tmp_path / REGISTER
    register.write_text("")
    writer = threading.Timer(0.15, register.unlink)
    writer.start()
    assert last_checkpoint(str(tmp_path)) is None
    writer.join()


def test_a_damaged_register_is_named(tmp_path: Path) -> None:
    (tmp_path / REGISTER).write_text('{"checkpoint_results": [')
    with pytest.raises(ValueError, match=str(tmp_path)):
        last_checkpoint(str(tmp_path))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (made,)

    torch.save({"step": 7, "config": Touch()}, tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{FILE} cannot be read: .* nothing in it was run"):
        read_state(ray.train.Checkpoint.from_directory(str(tmp_path)))
    assert not made.exists()
