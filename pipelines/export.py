"""Take a trained encoder away: write it in the form that another library loads, and load it there once."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines.checkpoint import find_checkpoint
from pipelines.exports.trained import Trained, load_trained

Target = Literal["timm", "safetensors", "torchvision", "onnx", "hf", "mlflow"]


@dataclass(frozen=True)
class Form:
    """A form of export.

    Attributes:
        module: that has `write(trained, path)` and `check(trained, path)`, and `refuse(trained)` where not every
            encoder can take the form.
        suffix: of the file; None where it is a folder.
        needs: packages beyond those that are always installed.
        tolerance: the largest difference of features that is rounding and no fault; 0 where it must be none.
    """

    module: str
    suffix: str | None = None
    needs: tuple[str, ...] = ()
    tolerance: float = 1e-4


FORMS: dict[str, Form] = {
    "timm": Form("timm_hub", tolerance=0.0),
    "safetensors": Form("single_file", suffix=".safetensors", tolerance=0.0),
    "torchvision": Form("torchvision_vit"),
    "onnx": Form("onnx_graph", suffix=".onnx", needs=("onnx", "onnxscript")),
    "hf": Form("transformers_vit"),
    "mlflow": Form("mlflow_model"),
}
assert set(FORMS) == set(get_args(Target))


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to take away, in which form, and where to.

    Attributes:
        checkpoint: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        to: the form; timm, torchvision, hf (transformers) and mlflow are folders, safetensors and onnx single files.
        out: a new or empty folder, or a new file that ends in .safetensors or .onnx.
        license: of the weights, as apache-2.0, for the model card; None leaves a gap to fill in.
    """

    checkpoint: str
    to: Target
    out: str
    license: str | None = None

    def __post_init__(self) -> None:
        if self.to not in FORMS:
            raise ValueError(f"to must be one of {', '.join(FORMS)}, got {self.to!r}")
        form, out = FORMS[self.to], Path(self.out)
        if "://" in self.out:
            raise ValueError(f"out must be a path on this machine, got {self.out}; copy the export there afterwards")
        if form.suffix and out.suffix != form.suffix:
            raise ValueError(f"out: {self.to} is a single file; give it a name that ends in {form.suffix}")
        if out.exists() and (form.suffix or not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"out: {self.out} exists already; choose another name, or remove it")
        if missing := [package for package in form.needs if find_spec(package) is None]:
            raise ValueError(f"to: {self.to} needs {' and '.join(missing)}; pip install 'lodisc[export]'")
        if self.license is not None and not self.license.strip():
            raise ValueError("license must not be empty")
        find_checkpoint(self.checkpoint)


def export(config: ExportConfig) -> Path:
    """Write the encoder of a checkpoint, and compare its features as the other library computes them with our own.

    The export is whole or not there at all: it gets its name once it is written and compared.

    Raises:
        ValueError: there is no such checkpoint, or the encoder cannot take this form.
        RuntimeError: the features differ by more than rounding.
    """
    trained = load_trained(config.checkpoint, config.license)
    form, out = FORMS[config.to], Path(config.out).absolute()
    module = import_module(f"pipelines.exports.{form.module}")
    if hasattr(module, "refuse"):
        module.refuse(trained)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        path = Path(folder) / out.name
        module.write(trained, path)
        said = _compare(module, form, trained, path)
        os.replace(path, out)
    print(f"{config.checkpoint}: the encoder after {trained.step} steps, written to {config.out}")
    print(said)
    return out


def _compare(module: Any, form: Form, trained: Trained, path: Path) -> str:
    """Return what the comparison found, in words."""
    try:
        difference = module.check(trained, path)
    except ImportError as error:
        return f"not compared: {error.name} is not installed"
    if not difference <= form.tolerance:
        raise RuntimeError(
            f"the exported encoder's features differ by {difference:g} from the checkpoint's, more than "
            f"{form.tolerance:g}; nothing was written"
        )
    return f"loaded again: features of random images differ by {difference:.2g} at most from the checkpoint's"
