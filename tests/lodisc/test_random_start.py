"""The random start equals MoCo v3's formulas, computed plainly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from lodisc.random_start import draw_weights

VARIANTS: list[dict[str, Any]] = [{"reg_tokens": 3}, {"reg_tokens": 3, "no_embed_class": True}, {"pos_embed": "none"}]


def drawn_vit(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2)
    return Encoder(config).vit.requires_grad_(False)


def bound_of(inputs: int, outputs: int) -> float:
    return math.sqrt(6 / (inputs + outputs))


def test_matrices_are_xavier_uniform() -> None:
    vit = drawn_vit()
    block = vit.blocks[1]
    bounds = [
        (block.attn.qkv.weight, bound_of(192, 192)),  # queries, keys and values by themselves
        (block.attn.proj.weight, bound_of(192, 192)),
        (block.mlp.fc1.weight, bound_of(192, 768)),
        (vit.patch_embed.proj.weight, bound_of(3 * 8 * 8, 192)),
    ]
    for weight, bound in bounds:
        assert weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert block.attn.qkv.bias.abs().max() == vit.patch_embed.proj.bias.abs().max() == 0


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    positions = drawn_vit().pos_embed[0]
    assert positions[0].abs().max() == 0, "the class token stands nowhere"
    frequencies = [10000 ** (-number / 48) for number in range(48)]
    for place, found in enumerate(positions[1:]):
        row, column = divmod(place, 4)
        expected = [
            function(coordinate * frequency)
            for function in (math.sin, math.cos)
            for coordinate in (row, column)
            for frequency in frequencies
        ]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_seed_decides() -> None:
    one, same, other = (drawn_vit(seed).blocks[0].mlp.fc1.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("changes", VARIANTS)
def test_other_tokens_before_the_patches(changes: dict[str, Any]) -> None:
    create: Any = timm.create_model
    vit = create("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, **changes)
    draw_weights(vit, (4, 4))
    if vit.pos_embed is not None:
        assert (vit.pos_embed[0].abs().sum(dim=1) > 0).sum() == 16
