"""Every form of export, loaded by the library that it is for, beside the encoder that it came from.

    python -m benchmarks.exports runs/mine --images photos.txt --out benchmarks/results/exports.json

Each form is loaded in a process of its own that never imports this package. "Same input" gives it the normalised views
that the encoder was given, "photographs" the image files, prepared as the form's own card says. Differences are
absolute, the largest over all images and features; beside them stands the standard deviation of the features.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

from benchmarks.report import markdown_table, write_results
from lodisc.normalise import normalise
from lodisc.views import eval_view
from pipelines.data.sources import find_source, list_images
from pipelines.run.checkpoint import load_encoder
from pipelines.takeaway.export import export
from pipelines.takeaway.options import FORMS, ExportConfig, Target

# In each script: `form` is the exported path, `views` (N, 3, H, W) normalised, `photographs` N images of PIL. It leaves
# `same` (N, D), and `own` (N, D) where the form says how to prepare an image.
HEAD = """
import json, pathlib, sys, numpy as np, torch
from PIL import Image
form, folder = sys.argv[1], sys.argv[2]
views = torch.from_numpy(np.load(f"{folder}/views.npy"))
photographs = [Image.open(path).convert("RGB") for path in json.loads(open(f"{folder}/paths.json").read())]
own = None
torch.set_grad_enabled(False)
"""
TAIL = """
assert not {"lodisc", "pipelines"} & set(sys.modules)
np.savez(f"{folder}/found.npz", same=same, **({} if own is None else {"own": own}))
"""
# MLflow's is the server's answer to the files themselves.
SCRIPTS = {
    "timm": """
import timm
model = timm.create_model(f"local-dir:{form}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
same, own = model(views), model(torch.stack([transform(photograph) for photograph in photographs]))
""",
    "safetensors": """
import timm
from safetensors import safe_open
facts = safe_open(form, "pt").metadata()
shape = dict(img_size=int(facts["image_size"]), patch_size=int(facts["patch_size"]), depth=int(facts["depth"]))
model = timm.create_model(facts["arch"], pretrained=True, pretrained_cfg_overlay=dict(file=form, custom_load=False),
                          num_classes=0, global_pool="token", **shape).eval()
same = model(views)
""",
    "torchvision": """
import torchvision, safetensors.torch
config = json.loads(pathlib.Path(form, "config.json").read_text())
model = torchvision.models.VisionTransformer(**config).eval()
model.heads = torch.nn.Identity()
model.load_state_dict(safetensors.torch.load_file(f"{form}/model.safetensors"))
same = model(views)
""",
    "onnx": """
import onnxruntime
same = onnxruntime.InferenceSession(form).run(["features"], {"images": views.numpy()})[0]
""",
    "hf": """
from transformers import AutoImageProcessor, ViTModel
processor = AutoImageProcessor.from_pretrained(form, backend="pil")
model = ViTModel.from_pretrained(form, add_pooling_layer=False)
same = model(views).last_hidden_state[:, 0]
own = model(**processor(photographs, return_tensors="pt")).last_hidden_state[:, 0]
""",
}


def main() -> None:
    """Export, compare, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--images", required=True, help="a list file or a folder of photographs")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exports.json"))
    arguments = parser.parse_args()
    rows = measure(arguments.checkpoint, photographs_of(arguments.images, arguments.count))
    print(table(rows), flush=True)
    write_results(arguments.out, rows)


def photographs_of(images: str, count: int) -> list[str]:
    """Return the paths of `count` photographs of a folder or list, spread over it."""
    paths: list[str] = list_images(find_source(images))["path"].to_pylist()
    return paths[:: max(1, len(paths) // count)][:count]


def measure(checkpoint: str, paths: list[str]) -> list[dict[str, Any]]:
    """Return a row for each form: {form, bytes, same, own, std}; None where there is nothing to compare."""
    encoder, about = load_encoder(checkpoint)
    size = about["config"]["encoder"]["image_size"]
    images = [Image.open(path).convert("RGB") for path in paths]
    views = normalise(torch.from_numpy(np.stack([eval_view(image, size) for image in images])))
    with torch.inference_mode():
        ours = encoder(views).numpy()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/views.npy", views.numpy())
        Path(folder, "paths.json").write_text(json.dumps(paths))
        for form in get_args(Target):
            out = Path(folder, f"{form}{FORMS[form].suffix or ''}")
            export(ExportConfig(checkpoint=checkpoint, to=form, out=str(out)))
            found = ask_server(out, paths) if form == "mlflow" else run_script(SCRIPTS[form], out, folder)
            rows.append({"form": form, "bytes": bytes_of(out), "std": float(ours.std()), "same": None, "own": None})
            rows[-1] |= {name: float(np.abs(features - ours).max()) for name, features in found.items()}
    return rows


def run_script(script: str, form: Path, folder: str) -> dict[str, np.ndarray]:
    """Return the features that a script computes in a new process, outside of this repository."""
    command = [sys.executable, "-I", "-c", HEAD + script + TAIL, str(form), folder]
    subprocess.run(command, check=True, cwd=folder, stderr=subprocess.DEVNULL)
    with np.load(f"{folder}/found.npz") as found:
        return dict(found)


def ask_server(model: Path, paths: list[str]) -> dict[str, np.ndarray]:
    """Return the features that `mlflow models serve` answers with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model), "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "--workers", "1"],
        cwd=model.parent,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    records = [{"image": b64encode(Path(path).read_bytes()).decode()} for path in paths]
    body = json.dumps({"dataframe_records": records}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    try:
        while server.poll() is None:
            try:
                with urllib.request.urlopen(request, timeout=300) as answer:
                    return {"own": np.array(json.loads(answer.read())["predictions"], dtype=np.float32)}
            except (ConnectionError, urllib.error.URLError):  # it is still starting
                time.sleep(0.5)
        raise RuntimeError("`mlflow models serve` ended by itself")
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    cells = [
        (
            row["form"],
            f"{row['bytes'] / 1e6:.2f} MB",
            *("" if row[name] is None else f"{row[name]:.1e}" if row[name] else "0" for name in ("same", "own")),
            f"{row['std']:.2f}",
        )
        for row in rows
    ]
    return markdown_table(("form", "size", "same input", "photographs", "std of the features"), cells)


if __name__ == "__main__":
    main()
