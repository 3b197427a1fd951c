"""Attention read beside the fused kernel equals attention matrices computed the slow way."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from lodisc.attention import fuse_attention, recorded_attention
from lodisc.pivots import keep_patches
from tests.lodisc.tiny import attention_layers, tiny_encoder, tiny_images

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "registers without position": {"reg_tokens": 3, "no_embed_class": True},
    "normalised queries and keys": {"qk_norm": True},
    "norm before the blocks": {"pre_norm": True},
}


def make_vit(**changes: Any) -> Any:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, depth=3, dynamic_img_size=True, **changes
    )
    with torch.no_grad():
        for attention in attention_layers(vit):
            attention.qkv.weight.mul_(5)
    return vit.double()


def attention_matrices(vit: Any, images: Tensor) -> Tensor:
    """Compute every block's matrix, averaged over heads, head by head in float64: (L, B, T, T)."""
    matrices = []
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for block in vit.blocks:
        attention, x = block.attn, block.norm1(tokens)
        queries, keys, _ = attention.qkv(x).chunk(3, dim=-1)
        per_head = []
        for head in range(attention.num_heads):
            part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            q, k = attention.q_norm(queries[..., part]), attention.k_norm(keys[..., part])
            per_head.append((q @ k.mT / attention.head_dim**0.5).softmax(dim=-1))
        matrices.append(torch.stack(per_head).mean(dim=0))
        tokens = block(tokens)
    return torch.stack(matrices)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [32, 48])
@torch.no_grad()
def test_rows_and_matrices_equal_the_slow_computation(variant: str, size: int) -> None:
    vit = make_vit(**VARIANTS[variant])
    assert vit.blocks[0].attn.fused_attn
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    expected = attention_matrices(vit, images)
    plain_output = vit(images)

    with recorded_attention(vit) as rows:
        torch.testing.assert_close(vit(images), plain_output, rtol=0, atol=0)
    with recorded_attention(vit, full=True) as matrices:
        vit(images)

    # Recorded in float32.
    torch.testing.assert_close(torch.stack(rows).exp().double(), expected[:, :, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.stack(matrices).exp().double(), expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_left_on_the_layers() -> None:
    vit = make_vit()
    with pytest.raises(KeyboardInterrupt), recorded_attention(vit) as rows:
        raise KeyboardInterrupt
    vit(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert rows == []
    assert not any(attention.qkv._forward_hooks for attention in attention_layers(vit))


def test_recording_leaves_gradients_alone() -> None:
    encoder, images = tiny_encoder(), tiny_images(2)
    weight = attention_layers(encoder.vit)[0].qkv.weight
    encoder(images).sum().backward()
    expected = weight.grad.clone()
    encoder.zero_grad()
    features, attention = encoder.forward_with_attention(images)
    features.sum().backward()
    assert not attention.requires_grad
    torch.testing.assert_close(weight.grad, expected, rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_products_give_what_the_fused_kernel_gives(variant: str) -> None:
    vit, images = make_vit(**VARIANTS[variant]), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = []
    for fused in (True, False):
        fuse_attention(vit, fused)
        assert all(attention.fused_attn == fused for attention in attention_layers(vit))
        vit.zero_grad()
        features = vit(images)
        features.square().sum().backward()
        found.append((features, attention_layers(vit)[0].qkv.weight.grad.clone()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_bf16_autocast_picks_nearly_the_same_patches() -> None:
    encoder, images = tiny_encoder(), tiny_images(4)
    _, expected = encoder.forward_with_attention(images)
    with torch.autocast("cpu", torch.bfloat16):
        features, attention = encoder.forward_with_attention(images)
    assert features.isfinite().all()
    assert attention.dtype == torch.float32
    # bf16 keeps 8 bits of queries and keys, and logits here reach about 10: 4 % of an attention weight and more.
    torch.testing.assert_close(attention.exp(), expected.exp(), rtol=0.1, atol=0.01)
    kept, kept_in_float32 = (keep_patches(a.sum(dim=0), 0.5) for a in (attention, expected))
    same = torch.isin(kept + 100 * torch.arange(4)[:, None], kept_in_float32 + 100 * torch.arange(4)[:, None])
    assert same.float().mean() > 0.85
