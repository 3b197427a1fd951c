"""A folder with the weights of torchvision's VisionTransformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file

from lodisc.plain_vit import departures, norm_epsilon, torchvision_weights
from pipelines.takeaway.exports import card, weights
from pipelines.takeaway.exports.trained import Trained

EPSILON = 1e-6  # of torchvision's layer norms
LOAD = """\
import json, pathlib, safetensors.torch, torch, torchvision
model = torchvision.models.VisionTransformer(**json.loads(pathlib.Path("config.json").read_text())).eval()
model.heads = torch.nn.Identity()
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))"""
NOTES = (
    "The weights have no `heads`; that is why these are replaced before the weights are loaded. To classify, load them "
    "first and put `torch.nn.Linear({dim}, CLASSES)` in their place."
)


def refuse(trained: Trained) -> None:
    """Raise ValueError where torchvision has no such ViT, saying why."""
    vit = trained.encoder.vit
    reasons = departures(vit)
    if not reasons and norm_epsilon(vit) != EPSILON:
        reasons = [f"layer norms with epsilon {norm_epsilon(vit):g} instead of {EPSILON:g}"]
    if reasons:
        raise ValueError(
            f"to: torchvision's VisionTransformer cannot hold {trained.arch}, which has {', '.join(reasons)}; "
            "export to timm, safetensors or onnx"
        )


def write(trained: Trained, path: Path) -> None:
    """Write weights, the constructor's arguments and the card to the new folder `path`."""
    path.mkdir()
    weights.save_weights(torchvision_weights(trained.encoder.vit), path / weights.FILE)
    (path / "config.json").write_text(json.dumps(arguments(trained), indent=2) + "\n")
    notes = NOTES.format(dim=trained.encoder.feature_dim)
    (path / card.FILE).write_text(card.card(trained, "torchvision", LOAD, notes))


def check(trained: Trained, path: Path) -> float:
    """Load the folder as its card says, and return the largest difference of its features from the encoder's."""
    model = torchvision.models.VisionTransformer(**json.loads((path / "config.json").read_text())).eval()
    model.heads = torch.nn.Identity()
    model.load_state_dict(load_file(path / weights.FILE))
    images = trained.images(2)
    with torch.inference_mode():
        return trained.difference(images, model(images))


def arguments(trained: Trained) -> dict[str, Any]:
    """Return the arguments of torchvision's VisionTransformer."""
    block: Any = trained.encoder.vit.blocks[0]
    return {
        "image_size": trained.image_size,
        "patch_size": trained.patch_size,
        "num_layers": trained.depth,
        "num_heads": block.attn.num_heads,
        "hidden_dim": trained.encoder.feature_dim,
        "mlp_dim": block.mlp.fc1.out_features,
    }
