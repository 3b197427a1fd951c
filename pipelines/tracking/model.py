"""The encoder as a model in MLflow, which can be registered and served."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.run.checkpoint import load_encoder
from pipelines.tracking.runs import RunHandle, say, tell
from pipelines.tracking.store import first_line

if TYPE_CHECKING:
    from torch import nn


def keep_encoder(run: RunHandle, run_dir: str) -> None:
    """Log the encoder of a run's last checkpoint to MLflow as a model that can be registered and served."""
    encoder, about = load_encoder(run_dir)
    size = about["config"]["encoder"]["image_size"]
    log_encoder(run, encoder, np.zeros((2, 3, size, size), dtype=np.float32), step=about["step"])


def log_encoder(handle: RunHandle, encoder: nn.Module, example: np.ndarray, step: int = 0) -> None:
    """Keep an encoder as the run's model `encoder`, which can be registered, served and loaded without this package.

    The model is an exported graph (pt2), in evaluation mode on the CPU, for any batch size.

    Args:
        handle: the run.
        encoder: normalised images (B, 3, H, W) float32 -> features (B, D) float32.
        example: a batch of at least two images, or the batch size would be fixed to one.
        step: finished steps of training.
    """
    assert len(example) >= 2, "a batch of one fixes the batch size of the exported graph"
    folder = Path(handle.buffer_path).parent / "files" / "encoder"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _save_model(encoder, example, folder, handle.run_id)
    except Exception as error:  # torch.export can fail in many ways, none of which takes the checkpoint away
        say(f"the encoder cannot be exported as an MLflow model ({first_line(error)}); the checkpoint holds it")
        return
    tell(handle, {"model": "encoder", "step": step})


def _save_model(encoder: nn.Module, example: np.ndarray, folder: Path, run_id: str) -> None:
    import copy

    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    encoder = copy.deepcopy(encoder).cpu().eval()
    with torch.inference_mode():
        dim = encoder(torch.from_numpy(example)).shape[1]
    images = TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:]), name=None)
    features = TensorSpec(np.dtype(np.float32), (-1, dim), name=None)
    mlflow.pytorch.save_model(
        encoder,
        str(folder),
        mlflow_model=Model(artifact_path=folder.name, run_id=run_id),
        signature=ModelSignature(inputs=Schema([images]), outputs=Schema([features])),
        input_example=example,
        pip_requirements=[f"mlflow=={version('mlflow')}", f"torch=={version('torch')}", f"numpy=={version('numpy')}"],
        serialization_format="pt2",
    )
