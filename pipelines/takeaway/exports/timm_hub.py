"""A folder in the format of timm's models on the Hugging Face Hub."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import timm
import torch

from lodisc.views import IMAGENET_MEAN, IMAGENET_STD
from pipelines.takeaway.exports import card, weights
from pipelines.takeaway.exports.trained import Trained

LOAD = """\
import timm
model = timm.create_model("local-dir:.", pretrained=True).eval()  # or "hf-hub:YOU/NAME" once it is there
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
features = model(transform(image.convert("RGB")).unsqueeze(0))"""


def write(trained: Trained, path: Path) -> None:
    """Write weights, config and card to the new folder `path`."""
    path.mkdir()
    weights.save_weights(trained.encoder.vit.state_dict(), path / weights.FILE)
    (path / "config.json").write_text(json.dumps(config(trained), indent=2) + "\n")
    (path / card.FILE).write_text(card.card(trained, "timm", LOAD))


def check(trained: Trained, path: Path) -> float:
    """Load the folder as its card says, and return the largest difference of its features from the encoder's."""
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    images = trained.images(2)
    with torch.inference_mode():
        return trained.difference(images, model(images))


def config(trained: Trained) -> dict[str, Any]:
    """Return the content of timm's config.json: how to build the model, and how to prepare its images."""
    pretrained = {
        "input_size": [3, trained.image_size, trained.image_size],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": crop_fraction(trained.image_size, trained.short_side),
        "crop_mode": "center",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": trained.license or card.TO_FILL_IN,
    }
    return {
        "architecture": trained.arch,
        "num_classes": 0,
        "num_features": trained.encoder.feature_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": trained.image_size,
            "patch_size": trained.patch_size,
            "depth": trained.depth,
            "global_pool": "token",
            "dynamic_img_size": True,
        },
        "pretrained_cfg": pretrained,
    }


def crop_fraction(image_size: int, short_side: int) -> float:
    """Return the fraction from which timm's floor(image_size / fraction) makes `short_side`, to the pixel."""
    fraction = image_size / short_side
    # A quotient that is rounded down would cost a pixel.
    return fraction if math.floor(image_size / fraction) == short_side else math.nextafter(fraction, 0)
