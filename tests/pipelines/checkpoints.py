"""Checkpoints as the train loop writes them, without the training."""

from __future__ import annotations

from pathlib import Path

import torch

from lodisc.config import EncoderConfig, ModelConfig
from lodisc.model import LoDisc
from pipelines.run.checkpoint import FILE
from pipelines.run.config import DataConfig, PretrainConfig, to_dict


def write_checkpoint(folder: Path, seed: int = 5) -> Path:
    """Write a checkpoint 7 steps into a run, of an encoder of 2 blocks for images of 32 px: 4 x 4 patches."""
    config = PretrainConfig(
        data=DataConfig(images="."),
        encoder=EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2),
        model=ModelConfig(hidden_dim=16, output_dim=8),
    )
    torch.manual_seed(seed)
    model = LoDisc(config.encoder, config.model)
    folder.mkdir(parents=True)
    about = {"step": 7, "config": to_dict(config), "run_id": "none", "tracking_uri": "none"}
    torch.save({"model": model.state_dict(), **about}, folder / FILE)
    return folder
