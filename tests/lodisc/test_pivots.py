"""Pivots equal plain products of attention matrices; the patches kept are the best ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lodisc.config import Pivots
from lodisc.encoder import Encoder
from lodisc.pivots import keep_patches, pivot_scores
from tests.lodisc.test_attention import attention_matrices
from tests.lodisc.tiny import PATCHES, tiny_config, tiny_encoder, tiny_images


def reference_scores(matrices: Tensor, pivots: Pivots, prefix: int) -> Tensor:
    """Score patches with whole matrices (L, B, T, T) in float64."""
    if pivots == "fused":
        return matrices.prod(dim=0)[:, 0, prefix:]
    if pivots == "last":
        return matrices[-1, :, 0, prefix:]
    rolled = torch.eye(matrices.shape[-1], dtype=matrices.dtype).expand_as(matrices[0])
    for layer in matrices:  # the first layer acts first: it is the rightmost factor
        rolled = (layer + torch.eye(layer.shape[-1], dtype=layer.dtype)) / 2 @ rolled
    return rolled[:, 0, prefix:]


@pytest.mark.parametrize("pivots", ["fused", "last", "rollout"])
@pytest.mark.parametrize("arch", ["test_vit", "vit_small_patch14_reg4_dinov2"])
@torch.no_grad()
def test_scores_equal_products_of_whole_matrices(arch: str, pivots: Pivots) -> None:
    encoder, images = tiny_encoder(arch=arch, depth=3).double(), tiny_images(3, dtype=torch.float64)
    expected = reference_scores(attention_matrices(encoder.vit, images), pivots, encoder.prefix_tokens)
    features, scores = pivot_scores(encoder, images, pivots)
    assert scores.dtype == torch.float32
    # Scores are float32 logarithms.
    torch.testing.assert_close(scores.double().exp(), expected, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(features, encoder(images))


def test_random_pivots_follow_torchs_seed_and_ignore_the_image() -> None:
    encoder = tiny_encoder()
    draws = []
    for seed, images in [(0, tiny_images(2)), (0, tiny_images(2, seed=9)), (1, tiny_images(2))]:
        torch.manual_seed(seed)
        draws.append(pivot_scores(encoder, images, "random")[1])
    assert draws[0].shape == (2, PATCHES)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@torch.no_grad()
def test_twelve_layers_of_196_patches_do_not_underflow_in_bf16() -> None:
    torch.manual_seed(0)
    encoder = Encoder(tiny_config(image_size=224, patch_size=16, depth=12))
    with torch.autocast("cpu", torch.bfloat16):
        _, scores = pivot_scores(encoder, torch.randn(1, 3, 224, 224), "fused")
    assert scores.shape == (1, 196)
    assert scores.isfinite().all()
    assert scores.exp().half().eq(0).all(), "the plain product would have underflowed"
    assert scores.unique().numel() > 150


@pytest.mark.parametrize(
    ("patches", "mask_ratio", "count"),
    [(196, 0.7, 58), (100, 0.9, 10), (10, 0.7, 3), (16, 0.5, 8), (16, 0.0, 16), (4, 0.9, 1), (196, 0.3, 137)],
)
def test_the_best_patches_are_kept_in_order(patches: int, mask_ratio: float, count: int) -> None:
    scores = torch.randn(5, patches, generator=torch.Generator().manual_seed(0))
    kept = keep_patches(scores, mask_ratio)
    assert kept.shape == (5, count)
    assert kept.dtype == torch.int64
    for row, values in zip(kept.tolist(), scores.tolist(), strict=True):
        assert row == sorted(sorted(range(patches), key=lambda i: -values[i])[:count])
