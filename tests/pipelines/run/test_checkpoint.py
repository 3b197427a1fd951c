"""Where checkpoints lie, what they hold, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.train
import torch

from pipelines.run.checkpoint import (
    FILE,
    checkpoint_location,
    find_checkpoint,
    last_checkpoint,
    load_encoder,
    read_state,
    weights_fingerprint,
)
from pipelines.run.folder import RunFolder
from tests.pipelines.checkpoints import write_checkpoint


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(str(tmp_path / "never-started")) is None
    assert last_checkpoint(str(tmp_path)) is None


def test_the_newest_whole_checkpoint_is_the_last_one(tmp_path: Path) -> None:
    """A cut one is none, whatever Ray's register says; the register of a killed process may itself be cut."""
    for step in (7, 14, 21):
        write_checkpoint(tmp_path / f"step-{step:08d}")
    (tmp_path / "step-00000035").mkdir()
    (tmp_path / "step-00000028").mkdir()
    (tmp_path / "step-00000028" / FILE).touch()
    cut = tmp_path / "step-00000021" / FILE
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [')
    last = last_checkpoint(str(tmp_path))
    assert last is not None and last.path == str(tmp_path / "step-00000014")
    assert RunFolder(str(tmp_path)).finished_steps() == 14
    assert RunFolder(str(tmp_path)).cut_off() == ["step-00000035", "step-00000028", "step-00000021"]
    cut.unlink()
    assert find_checkpoint(str(tmp_path)).path == last.path


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (7, 99999999, 100000000):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "tracking").mkdir()
    folder = RunFolder(str(tmp_path))
    folder.prune(keep=2)
    assert folder.folders() == ["step-100000000", "step-99999999", "tracking"]
    folder.prune(keep=1)
    assert folder.folders() == ["step-100000000", "tracking"]


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
