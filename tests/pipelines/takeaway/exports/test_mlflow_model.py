"""The model as MLflow serves it, by a real server of its own process."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lodisc.normalise import normalise
from lodisc.views import eval_view
from pipelines.data.decode import decode_image
from pipelines.takeaway.exports import mlflow_model
from pipelines.takeaway.exports.trained import Trained
from tests.pipelines.mlflow_server import free_port

START_SECONDS = 120.0


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Yield the address of `mlflow models serve`, run where this package cannot be imported."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # MLflow calls uvicorn by its name, as in an activated environment.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with (model.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "--workers", "1"],
            cwd=model.parent,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/ping"):
            said = (model.parent / "log").read_text()
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def post(address: str, files: list[bytes]) -> Any:
    records = [{"image": base64.b64encode(data).decode()} for data in files]
    body = json.dumps({"dataframe_records": records}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["predictions"]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.slow
def test_a_server_answers_with_our_features(trained: Trained, photograph: Image.Image, tmp_path: Path) -> None:
    model = tmp_path / "model"
    mlflow_model.write(trained, model)
    turned = Image.Exif()
    turned[0x0112] = 6
    transparent = photograph.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(photograph.size))
    files = [
        encoded(photograph, "JPEG"),
        encoded(photograph, "JPEG", exif=turned),
        encoded(transparent, "PNG"),
        encoded(photograph.convert("L"), "PNG"),
    ]
    views = np.stack([eval_view(decode_image(data), 32) for data in files])
    expected = trained.encoder(normalise(torch.from_numpy(views)))
    with served(model) as address:
        answer = torch.tensor(post(address, files))
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-4)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(address, [files[0], b"no image"])
        assert refused.value.code == 400 and "image of row 1: not an image" in refused.value.read().decode()

    about = yaml.safe_load((model / "MLmodel").read_text())
    assert json.loads(about["signature"]["inputs"])[0] == {"type": "binary", "name": "image", "required": True}
    assert json.loads(about["signature"]["outputs"])[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 64]}
    requirements = (model / "requirements.txt").read_text()
    assert f"timm=={mlflow_model.version('timm')}" in requirements and "lodisc" not in requirements
    names = {file.name for file in model.rglob("*") if file.is_file()}
    assert {"model.safetensors", "served.py", "lodisc_decode.py", "README.md"} <= names
    assert not any(name.endswith((".pkl", ".pt", ".pth", ".pickle", ".bin")) for name in names)
