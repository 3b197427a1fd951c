"""The command: what it refuses, what it writes, what it leaves behind when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors import safe_open

from cluster.cli import main
from lodisc.config import EncoderConfig, ModelConfig
from lodisc.model import LoDisc
from pipelines.run.checkpoint import FILE, load_encoder
from pipelines.run.config import DataConfig, PretrainConfig, to_dict
from pipelines.takeaway import options
from pipelines.takeaway.export import export
from pipelines.takeaway.exports import onnx_graph, timm_hub
from pipelines.takeaway.options import FORMS, ExportConfig

FOLDERS = [name for name, form in FORMS.items() if form.suffix is None and name != "mlflow"]  # that has its own test


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Return `make(run_id="gone", uri=..., arch="test_vit")`: a checkpoint as the train loop writes it at step 7."""

    def make(run_id: str = "gone", uri: str = f"sqlite:///{tmp_path}/none.db", arch: str = "test_vit") -> Path:
        config = PretrainConfig(
            data=DataConfig(images="/home/somebody/secret"),
            encoder=EncoderConfig(arch=arch, image_size=32, patch_size=8, depth=2),
            model=ModelConfig(hidden_dim=16, output_dim=8),
        )
        torch.manual_seed(5)
        state = LoDisc(config.encoder, config.model).state_dict()
        folder = tmp_path / "step-00000007"
        folder.mkdir()
        about = {"step": 7, "config": to_dict(config), "run_id": run_id, "tracking_uri": uri}
        torch.save({"model": state, **about}, folder / FILE)
        return folder

    return make


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the head and the text of a model card."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "tensorflow"}, "to must be one of timm, safetensors"),
        ({"to": "safetensors"}, r"out: safetensors is a single file; .* ends in \.safetensors"),
        ({"to": "onnx", "out": "encoder"}, r"out: onnx is a single file; .* ends in \.onnx"),
        ({"to": "onnx", "out": "there.onnx"}, r"out: there\.onnx exists already"),
        ({"out": "there.onnx"}, r"out: there\.onnx exists already"),
        ({"out": "full"}, "out: full exists already"),
        ({"out": "s3://bucket/out"}, "out must be a path on this machine"),
        ({"license": " "}, "license must not be empty"),
        ({"checkpoint": "/nowhere"}, "/nowhere: neither a checkpoint folder"),
    ],
)
def test_config_refuses(
    changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "full"):
        Path(name).mkdir()
    Path("full", "file").touch()
    Path("there.onnx").touch()
    ExportConfig(checkpoint=str(checkpoint), to="timm", out="empty")
    with pytest.raises(ValueError, match=message):
        ExportConfig(**{"checkpoint": str(checkpoint), "to": "timm", "out": "new", **changes})


def test_a_missing_package_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"to: onnx needs onnxscript; pip install 'lodisc\[export\]'"):
        ExportConfig(checkpoint=str(checkpoint), to="onnx", out=str(tmp_path / "encoder.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("to", FOLDERS)
def test_every_folder_has_a_card(to: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    export(ExportConfig(checkpoint=str(checkpoint), to=to, out=str(out)))
    printed = capsys.readouterr().out
    assert "the encoder after 7 steps" in printed and "loaded again: features of random images differ by" in printed
    head, text = card_of(out)
    assert head["license"] == "TO BE FILLED IN" and text.count("TO BE FILLED IN") >= 3
    facts = ["| image size | 32 px |", "| patch size | 8 px |", "| depth | 2 blocks |", "| steps | 7 |", "`test_vit`"]
    facts += ["[0.485, 0.456, 0.406]", "[0.229, 0.224, 0.225]", "short side of 37 px", "temperature: 0.2"]
    assert all(fact in text for fact in facts)
    assert "somebody" not in text, "the user's own paths are nobody else's business"
    code = text.split("```python\n")[1].split("```")[0]
    assert 3 <= len(code.splitlines()) <= 4
    assert list(out.parent.iterdir()) == [out]


def test_the_lines_of_the_card_load_it(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(ExportConfig(checkpoint=str(checkpoint), to="torchvision", out=str(tmp_path / "out")))
    monkeypatch.chdir(tmp_path / "out")
    _, text = card_of(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(names["model"](images), load_encoder(str(checkpoint))[0](images), rtol=1e-4, atol=1e-5)


def test_the_card_tells_scores_of_its_own_step_and_the_licence(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("test"), tags={"dataset.fingerprint": "cafe"}).info.run_id
    for name, value, step in (
        ("eval/knn/fine", 11.0, 3),
        ("eval/knn/fine", 22.0, 7),
        ("test/rankme", 5.5, 7),
        ("test/knn/fine", 99.0, 8),
        ("loss", 1.0, 7),
    ):
        client.log_metric(run_id, name, value, step=step)
    checkpoint = make_checkpoint(run_id, uri)
    export(ExportConfig(checkpoint=str(checkpoint), to="timm", out=str(tmp_path / "out"), license="cc-by-4.0"))
    head, text = card_of(tmp_path / "out")
    assert head["license"] == "cc-by-4.0" and "| these weights | cc-by-4.0 |" in text
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-4.0"
    scores = text.split("## Scores")[1].split("## ")[0]
    assert "| `eval/knn/fine` | 22.00 % |" in scores and "| `test/rankme` | 5.50 |" in scores
    assert "99.00" not in scores and "11.00" not in scores and "loss" not in scores
    assert "| fingerprint | `cafe` |" in text and run_id in text


def test_a_store_that_is_gone_costs_a_warning(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder.safetensors"
    export(ExportConfig(checkpoint=str(checkpoint), to="safetensors", out=str(out)))
    assert "warning: no scores and no fingerprint" in capsys.readouterr().out
    assert not (tmp_path / "none.db").exists()
    with safe_open(out, "pt") as file:
        assert file.metadata()["step"] == "7"
        assert not any(name.startswith(("encoder.", "projector", "predictor")) for name in file.keys())  # noqa: SIM118


def test_nothing_is_left_of_an_export_that_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(checkpoint=str(checkpoint), to="timm", out=str(tmp_path / "out"))
    monkeypatch.setattr(timm_hub, "check", lambda *_: 1e-9)
    with pytest.raises(RuntimeError, match="differ by 1e-09 from the checkpoint's, more than 0"):
        export(config)
    monkeypatch.setattr(timm_hub, "check", lambda *_: float("nan"))
    with pytest.raises(RuntimeError, match="differ by nan"):
        export(config)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_what_cannot_be_compared_is_said(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(*_: Any) -> float:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(onnx_graph, "write", lambda _, path: path.touch())
    monkeypatch.setattr(onnx_graph, "check", check)
    export(ExportConfig(checkpoint=str(checkpoint), to="onnx", out=str(tmp_path / "encoder.onnx")))
    assert "not compared: onnxruntime is not installed" in capsys.readouterr().out


def test_an_encoder_that_does_not_fit_is_refused_in_one_line(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint(arch="vit_small_patch14_dinov2")
    assert main(["export", str(checkpoint), "--to", "torchvision", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lodisc: error: to: torchvision's VisionTransformer cannot hold") and "layer scale" in error
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_checkpoint_with_code_in_it_is_refused_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (made,)

    state = torch.load(checkpoint / FILE, weights_only=True)
    torch.save(state | {"optimizer": Touch()}, checkpoint / FILE)
    assert main(["export", str(checkpoint), "--to", "timm", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{checkpoint}/{FILE} cannot be read: it is damaged, or holds more than tensors and plain values" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [checkpoint]
