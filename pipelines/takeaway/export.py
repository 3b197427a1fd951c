"""Take a trained encoder away: write it in the form that another library loads, and load it there once."""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.takeaway.exports.trained import Trained, load_trained
from pipelines.takeaway.options import FORMS, ExportConfig, Form


def export(config: ExportConfig) -> Path:
    """Write the encoder of a checkpoint, and compare its features as the other library computes them with our own.

    The export is whole or not there at all: it gets its name once it is written and compared.

    Raises:
        ValueError: there is no such checkpoint, or the encoder cannot take this form.
        RuntimeError: the features differ by more than rounding.
    """
    trained = load_trained(config.checkpoint, config.license)
    form, out = FORMS[config.to], Path(config.out).absolute()
    module = import_module(f"pipelines.takeaway.exports.{form.module}")
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
