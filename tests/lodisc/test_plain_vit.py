"""Which ViTs are plain, and the names that other libraries give their weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer

from lodisc.plain_vit import departures, norm_epsilon, torchvision_weights, transformers_weights


def bare(arch: str, **changes: Any) -> VisionTransformer:
    """A ViT without memory for its weights."""
    with torch.device("meta"):
        vit = timm.create_model(arch, num_classes=0, global_pool="token", **changes)
    assert isinstance(vit, VisionTransformer)
    return vit


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


@pytest.mark.parametrize("arch", ["test_vit", "vit_tiny_patch16_224", "vit_base_patch32_384", "deit_small_patch16_224"])
def test_plain(arch: str) -> None:
    vit = bare(arch, depth=1)
    assert departures(vit) == [] and norm_epsilon(vit) == 1e-6


@pytest.mark.parametrize(
    ("arch", "changes", "expected"),
    [
        ("deit_small_distilled_patch16_224", {}, ["registers beside the class token"]),
        ("flexivit_small", {}, ["no position embedding of the class token"]),
        ("vit_base_patch16_224_miil", {}, ["no bias in the attention"]),
        ("vit_small_patch14_dinov2", {}, ["layer scale"]),
        ("vit_small_patch16_224", {"qk_norm": True}, ["norms of queries and keys"]),
        ("vit_small_patch16_224", {"scale_attn_norm": True}, ["a norm or gate in the attention"]),
        ("vit_small_patch16_224", {"final_norm": False}, ["no layer norm after the blocks"]),
        ("vit_small_patch16_224", {"act_layer": "quick_gelu"}, ["another activation (QuickGELU)"]),
        ("vit_small_patch16_224", {"act_layer": "gelu_tanh"}, ["another activation (GELUTanh)"]),
        ("vit_small_patch16_18x2_224", {}, ["blocks of another kind (ParallelThingsBlock)"]),
        ("vit_base_patch16_clip_224", {}, ["no bias in the patch embedding", "a norm before the blocks"]),
        ("vit_giant_patch14_dinov2", {}, ["layer scale", "another MLP (GluMlp)"]),
    ],
)
def test_not_plain(arch: str, changes: dict[str, object], expected: list[str]) -> None:
    assert departures(bare(arch, depth=2, **changes)) == expected


def test_one_epsilon_for_all_norms() -> None:
    vit = bare("test_vit", depth=1)
    vit.blocks[0].norm1.eps = 1e-5
    assert departures(vit) == ["layer norms of different epsilon"]


def test_the_names_and_shapes_of_vit_b_16() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16().state_dict()
    ours = torchvision_weights(bare("vit_base_patch16_224"))
    assert shapes(ours) == {name: shape for name, shape in shapes(theirs).items() if not name.startswith("heads.")}


def test_queries_keys_and_values_are_told_apart() -> None:
    torch.manual_seed(0)
    vit: Any = timm.create_model("test_vit", num_classes=0, depth=1)
    weights, prefix = transformers_weights(vit), "encoder.layer.0.attention.attention"
    parts = [weights[f"{prefix}.{name}.weight"] for name in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts), vit.blocks[0].attn.qkv.weight)
    assert all(tensor.is_contiguous() for tensor in weights.values())
    assert sum(tensor.numel() for tensor in weights.values()) == sum(p.numel() for p in vit.parameters())
