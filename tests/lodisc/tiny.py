"""A ViT, objective and images small enough to compute by hand: 16 patches of 8 pixels, 2 blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lodisc.config import EncoderConfig, ModelConfig
from lodisc.encoder import Encoder
from lodisc.model import LoDisc

PATCHES = 16


def tiny_config(**changes: Any) -> EncoderConfig:
    return EncoderConfig(**{"arch": "test_vit", "image_size": 32, "patch_size": 8, "depth": 2, **changes})


def attention_layers(vit: Any) -> list[Any]:
    """Return the attention layer of every block."""
    return [block.attn for block in vit.blocks]


def tiny_encoder(**changes: Any) -> Encoder:
    """Return an encoder with attention far from uniform: fresh weights attend to all patches alike."""
    torch.manual_seed(0)
    encoder = Encoder(tiny_config(**changes))
    with torch.no_grad():
        for attention in attention_layers(encoder.vit):
            attention.qkv.weight.mul_(20)
    return encoder


def tiny_model(freeze_patch_embed: bool = True, **changes: Any) -> LoDisc:
    """Return a model in float64, so that two ways to compute it can be compared closely."""
    torch.manual_seed(0)
    config = ModelConfig(**{"hidden_dim": 24, "output_dim": 12, **changes})
    return LoDisc(tiny_config(freeze_patch_embed=freeze_patch_embed), config).double()


def tiny_images(batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(seed))
