"""What an exported MLflow model runs: encoded images in, features out.

MLflow copies this file into the model and runs it there, where this package need not be installed. So it builds the
encoder by timm from the files beside it, and no pickle is loaded.
"""

from __future__ import annotations

from typing import Any

import mlflow
import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

COLUMN = "image"
BATCH = 64


class ImageEncoder(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Images in a column of bytes to features."""

    def load_context(self, context: Any) -> None:
        """Build the encoder and its transform from the model's artifacts."""
        import timm
        import torch

        # A copy of `pipelines/data/decode.py`, see `pipelines/takeaway/exports/mlflow_model.py`.
        from lodisc_decode import decode_image

        self.decode = decode_image
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder: Any = timm.create_model(f"local-dir:{context.artifacts['encoder']}", pretrained=True)
        self.encoder.to(self.device).eval()
        self.transform = timm.data.create_transform(**timm.data.resolve_data_config(model=self.encoder))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """Map {image: bytes of a file} (n rows) to features (n, D) float32.

        Raises:
            MlflowException: an image cannot be decoded; the server answers 400, naming the row and the reason.
        """
        import torch

        images = [self._view(number, data) for number, data in enumerate(model_input[COLUMN])]
        with torch.inference_mode():
            batches = [
                self.encoder(torch.stack(images[start : start + BATCH]).to(self.device)).cpu().numpy()
                for start in range(0, len(images), BATCH)
            ]
        return np.concatenate(batches) if batches else np.empty((0, self.encoder.num_features), np.float32)

    def _view(self, number: int, data: bytes) -> Any:
        try:
            return self.transform(self.decode(data))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(f"image of row {number}: {error}") from error


mlflow.models.set_model(ImageEncoder())
