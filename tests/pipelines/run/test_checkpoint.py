"""Where checkpoints lie, what they hold, and files that are none; Ray may rewrite a register while it is read."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import ray.train
import torch

from pipelines.run.checkpoint import (
    FILE,
    checkpoint_location,
    last_checkpoint,
    load_encoder,
    read_state,
    repair_register,
    weights_fingerprint,
)
from tests.pipelines.checkpoints import write_checkpoint

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


def test_a_damaged_register_is_written_anew_with_the_whole_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that lacks its end, or some of its middle, is none; what Ray reads then is the last whole one."""
    for step in (7, 14, 21, 28):
        write_checkpoint(tmp_path / f"step-{step:08d}")
    cut, holed = (tmp_path / f"step-{step:08d}" / FILE for step in (28, 21))
    cut.write_bytes(cut.read_bytes()[:-100])
    content = bytearray(holed.read_bytes())
    content[len(content) // 2] ^= 1
    holed.write_bytes(content)
    (tmp_path / "step-00000035").mkdir()
    (tmp_path / REGISTER).write_text('{"checkpoint_results": [')
    repair_register(str(tmp_path))
    last = last_checkpoint(str(tmp_path))
    assert last is not None and last.path == str(tmp_path / "step-00000014")
    assert "written anew with step-00000007, step-00000014" in capsys.readouterr().err
    repair_register(str(tmp_path))
    assert capsys.readouterr().err == ""


def test_a_register_that_names_a_checkpoint_that_is_gone_is_written_anew(tmp_path: Path) -> None:
    for step in (7, 14):
        write_checkpoint(tmp_path / f"step-{step:08d}")
    (tmp_path / REGISTER).write_text("")
    repair_register(str(tmp_path))
    shutil.rmtree(tmp_path / "step-00000014")
    repair_register(str(tmp_path))
    last = last_checkpoint(str(tmp_path))
    assert last is not None and last.path == str(tmp_path / "step-00000007")


def test_a_damaged_register_without_a_whole_checkpoint_begins_anew(tmp_path: Path) -> None:
    repair_register(str(tmp_path))
    assert not (tmp_path / REGISTER).exists()
    (tmp_path / REGISTER).write_text("")
    repair_register(str(tmp_path))
    assert last_checkpoint(str(tmp_path)) is None


def test_a_fingerprint_tells_encoders_apart_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (write_checkpoint(tmp_path / name / "step-00000007") for name in ("first", "second"))
    monkeypatch.chdir(first)
    assert checkpoint_location("../step-00000007") == str(first)
    assert checkpoint_location(f"local://{first}/") == f"local://{first}"
    encoder, copy = load_encoder(str(first))[0], load_encoder(str(second))[0]
    assert weights_fingerprint(encoder) == weights_fingerprint(copy)
    with torch.no_grad():
        copy.vit.norm.bias += 1e-3
    assert weights_fingerprint(encoder) != weights_fingerprint(copy)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (made,)

    torch.save({"step": 7, "config": Touch()}, tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{FILE} cannot be read: .* nothing in it was run"):
        read_state(ray.train.Checkpoint.from_directory(str(tmp_path)))
    assert not made.exists()
