"""One safetensors file with timm's names, which `encoder.weights` reads too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from pipelines.takeaway.exports import card
from pipelines.takeaway.exports.trained import Trained
from pipelines.takeaway.exports.weights import save_weights


def write(trained: Trained, path: Path) -> None:
    """Write the file; what is known of the encoder is in its header."""
    save_weights(trained.encoder.vit.state_dict(), path, card.facts(trained))


def check(trained: Trained, path: Path) -> float:
    """Load the file by `encoder.weights`, and return the largest difference of its features from the encoder's."""
    config = replace(EncoderConfig(**{**trained.config["encoder"], "weights": "random"}), weights=str(path))
    images = trained.images(2)
    with torch.inference_mode():
        return trained.difference(images, Encoder(config).eval()(images))
