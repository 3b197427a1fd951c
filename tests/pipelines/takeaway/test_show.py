"""`lodisc show` from a checkpoint and files to pictures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.run.checkpoint import FILE, load_encoder
from pipelines.run.config import DataConfig
from pipelines.takeaway.options import ShowConfig
from pipelines.takeaway.show import show
from tests.pipelines.tiny_run import write_checkpoint

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "run", DataConfig(images="photos"))


def test_the_momentum_encoder_is_told_from_the_base(checkpoint: Path) -> None:
    state = torch.load(checkpoint / FILE, weights_only=True)["model"]
    base, momentum = (load_encoder(str(checkpoint), momentum=momentum)[0] for momentum in (False, True))
    for name, encoder in (("encoder", base), ("momentum_encoder", momentum)):
        assert torch.equal(encoder.state_dict()["vit.cls_token"], state[f"{name}.vit.cls_token"])
    assert not torch.equal(state["encoder.vit.norm.weight"], state["momentum_encoder.vit.norm.weight"])


@pytest.mark.slow
def test_pictures_of_a_folder_without_ray(checkpoint: Path, image_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = image_folder(classes=2, per_class=2), tmp_path / "pictures"
    command = ["show", str(checkpoint), "--images", str(folder), "--out", str(out), "--count", "2"]
    code = f"import sys, ray; from cluster.cli import main; main({command!r}); sys.exit(ray.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "INFO" not in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == 5
    names = sorted(path.name for path in out.iterdir())
    assert names[0] == "before-after.png" and [name[:9] for name in names[1:3]] == ["pivots-01", "pivots-02"]
    assert [name[:8] for name in names[3:]] == ["views-01", "views-02"]
    for name in names:
        with Image.open(out / name) as picture:
            assert picture.width > 1100 and picture.height > 600 and picture.mode == "RGB"


def test_lost_initial_weights_cost_one_sheet(
    checkpoint: Path, image_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint / FILE, weights_only=True)
    state["config"]["encoder"]["weights"] = str(tmp_path / "moved.safetensors")
    torch.save(state, checkpoint / FILE)
    image = image_folder(classes=1, per_class=1) / "class-0" / "000.jpg"
    paths = show(ShowConfig(checkpoint=str(checkpoint), images=str(image), out=str(tmp_path / "out")))
    assert [path.name for path in paths] == ["pivots-01-000.png", "views-01-000.png"]
    assert "warning: the encoder before training cannot be made: encoder.weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "nowhere"}, "nowhere: neither a checkpoint folder"),
        ({"images": "gone.jpg"}, r"gone\.jpg: there is no such file"),
        ({"images": "gone"}, "gone: there is no such file or folder"),
        ({"out": "file"}, "out must be a folder, file is a file"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("step-00000007", "images"):
        Path(folder).mkdir()
    Path("step-00000007", FILE).touch()
    Path("file").touch()
    good: dict[str, Any] = {"checkpoint": "step-00000007", "images": "images", "out": "out"}
    assert not ShowConfig(**good).uses_ray
    with pytest.raises(ValueError, match=message):
        ShowConfig(**{**good, **changes})
