"""The random weights that an encoder starts from: MoCo v3's, whose ViTs learn without labels."""

from __future__ import annotations

import math

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn


@torch.no_grad()
def draw_weights(vit: VisionTransformer, grid: tuple[int, int]) -> None:
    """Draw a ViT's weights from torch's global generator, as MoCo v3 does (arXiv 2104.02057, its ViT's initialisation).

    Linear layers are Xavier uniform, queries, keys and values each by itself; so is the patch embedding, as the linear
    layer that it is. Positions begin as sines and cosines of row and column, those of the tokens before the patches as
    0; they learn on, where MoCo v3 leaves them. timm's own start, normal with deviation 0.02 throughout, leaves a
    narrow ViT's blocks and positions almost without effect.

    Args:
        vit: a ViT with timm's plain patch embedding.
        grid: (rows, columns) of its patches.
    """
    vit.init_weights("moco")
    projection = vit.patch_embed.proj
    assert isinstance(projection, nn.Conv2d), "the encoder takes no other stem"
    bound = math.sqrt(6 / (projection.weight[0].numel() + projection.out_channels))
    nn.init.uniform_(projection.weight, -bound, bound)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    if vit.pos_embed is not None:
        vit.pos_embed.zero_()
        vit.pos_embed[0, -grid[0] * grid[1] :] = build_sincos2d_pos_embed(list(grid), vit.embed_dim)
