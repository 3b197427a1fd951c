"""Ray's register of a run's checkpoints, which may be read while Ray rewrites it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipelines.checkpoint import last_checkpoint

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
