"""An MLflow model that serves features of images over REST."""

from __future__ import annotations

import io
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lodisc.normalise import normalise
from lodisc.views import eval_view
from pipelines.data import decode
from pipelines.takeaway.exports import card, timm_hub
from pipelines.takeaway.exports.trained import Trained

SERVED = Path(__file__).with_name("served.py")
COLUMN = "image"
PACKAGES = ("mlflow", "torch", "torchvision", "timm", "safetensors", "pillow", "numpy", "pandas")
LOAD = """\
import mlflow, pandas
model = mlflow.pyfunc.load_model(".")
features = model.predict(pandas.DataFrame({"image": [open("photo.jpg", "rb").read()]}))"""
NOTES = """\
Serve it, and ask for the features of a photograph, its bytes in base64:

```sh
mlflow models serve --model-uri . --port 5001 --env-manager local
curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\
    -d '{"dataframe_records": [{"image": "'$(base64 -w0 photo.jpg)'"}]}'
```

The answer is `{"predictions": [[...]]}`, a list of numbers an image. The model is code and safetensors: nothing in it
is a pickle."""


def write(trained: Trained, path: Path) -> None:
    """Write the model and its card to the new folder `path`."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    features = TensorSpec(np.dtype(np.float32), (-1, trained.encoder.feature_dim), name=None)
    with tempfile.TemporaryDirectory() as folder:
        encoder, decoder = Path(folder, "encoder"), Path(folder, "lodisc_decode.py")
        timm_hub.write(trained, encoder)
        # Under a name of its own: as `pipelines` it would hide the package where that is installed.
        shutil.copy(str(decode.__file__), decoder)
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(SERVED),
            artifacts={"encoder": str(encoder)},
            code_paths=[str(decoder)],
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.binary, COLUMN)]),  # which the server reads as base64
                outputs=Schema([features]),
            ),
            input_example=pd.DataFrame({COLUMN: encoded_images(trained, 1)}),
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in PACKAGES],
        )
    (path / card.FILE).write_text(card.card(trained, "mlflow", LOAD, NOTES))


def check(trained: Trained, path: Path) -> float:
    """Load the model as its card says, and return the largest difference of its features from our own of the files."""
    import mlflow.pyfunc
    import pandas as pd

    files = encoded_images(trained, 2)
    served = mlflow.pyfunc.load_model(str(path)).predict(pd.DataFrame({COLUMN: files}))
    views = np.stack([eval_view(decode.decode_image(data), trained.image_size) for data in files])
    return trained.difference(normalise(torch.from_numpy(views)), torch.from_numpy(served))


def encoded_images(trained: Trained, count: int) -> list[bytes]:
    """Return random images as PNG files, one wider than high, always the same."""
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        stream = io.BytesIO()
        shape = (trained.short_side + 20, trained.short_side + 30 * (number + 1), 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    return files
