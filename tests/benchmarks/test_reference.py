"""The contender that benchmarks/step measures against computes the same loss and gradients as the product."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.reference import attention_matrices, plain_attention, reference_loss
from tests.lodisc.tiny import attention_layers, tiny_encoder, tiny_images, tiny_model


def test_reference_and_product_agree_on_the_step() -> None:
    model = tiny_model(local_view="pixels", local_weight=0.5)
    encoder = tiny_encoder()
    model.encoder.load_state_dict(encoder.state_dict())  # whose pivots differ clearly
    literal = copy.deepcopy(model)
    view1, view2 = tiny_images(6, seed=1, dtype=torch.float64), tiny_images(6, seed=2, dtype=torch.float64)

    theirs, agreement = reference_loss(literal, view1, view2, momentum=0.9)
    theirs.backward()
    model.update_momentum(0.9**4)
    ours, _ = model(view1, view2)
    ours.backward()

    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(model.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad)
    assert 0 < agreement < 1


def test_reference_forms_whole_matrices() -> None:
    model = tiny_model().float()
    with plain_attention(model), torch.no_grad():
        layers = attention_matrices(model.encoder, tiny_images(3))
    assert [tuple(layer.shape) for layer in layers] == [(3, 17, 17)] * 2
    assert layers[0].sum(dim=-1).flatten().tolist() == pytest.approx([1.0] * 51, abs=1e-5)
    assert all(layer.fused_attn for layer in attention_layers(model.encoder.vit))
