"""Pivots: where the momentum encoder looks, and which patches the local view therefore keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from lodisc.config import Pivots
from lodisc.encoder import Encoder


@torch.no_grad()
def pivot_scores(encoder: Encoder, images: Tensor, pivots: Pivots) -> tuple[Tensor, Tensor]:
    """Encode images and score their patches, in one pass.

    fused: s = prod_l A_l[cls, patches], as the sum of logarithms over layers (METHOD: local branch, step 1; twelve
    products of about 1/196 underflow in half precision). last: the last layer's row alone. rollout: the class-token
    row of prod_l (A_l + I) / 2 (Abnar & Zuidema 2020), which needs whole matrices. random: uniform scores.

    Args:
        encoder: the encoder that looks.
        images: (B, 3, H, W), normalised.
        pivots: how to score.

    Returns:
        Features (B, D), and scores (B, N) float32, comparable within an image only. Except for `random` they are
        logarithms of attention.
    """
    if pivots == "random":
        features = encoder(images)
        patches = encoder.patches_of(images)
        return features, torch.rand(len(images), patches, device=images.device)
    features, attention = encoder.forward_with_attention(images, full=pivots == "rollout")
    if pivots == "fused":
        return features, attention.sum(dim=0)
    if pivots == "last":
        return features, attention[-1]
    return features, _rollout(attention.exp())[:, encoder.prefix_tokens :].log()


def _rollout(attention: Tensor) -> Tensor:
    """Return the class token's row (B, T) of prod_l (A_l + I) / 2, from attention matrices (L, B, T, T)."""
    row = torch.zeros_like(attention[0, :, :1])
    row[..., 0] = 1.0
    for layer in attention.flip(0):
        row = (row @ layer + row) / 2
    return row[:, 0]


def keep_patches(scores: Tensor, mask_ratio: float) -> Tensor:
    """Keep the patches with the highest scores (METHOD: local branch, step 2).

    Args:
        scores: (B, N).
        mask_ratio: fraction of patches to drop, 0 <= mask_ratio < 1.

    Returns:
        (B, K) int64 patch indices in ascending order, K = int((1 - mask_ratio) * N), at least 1; 58 of 196 at 0.7.
    """
    patches = scores.shape[1]
    # (1 - 0.9) * 100 is 9.999... in floating point: without the margin one patch would be lost.
    count = max(1, int((1 - mask_ratio) * patches + 1e-6))
    return scores.topk(count, dim=1).indices.sort(dim=1).values
