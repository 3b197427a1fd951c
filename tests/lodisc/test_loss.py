"""The contrastive loss equals a plain loop over a parameter grid."""

from __future__ import annotations

import math

import pytest
import torch

from lodisc.loss import contrastive_loss


def loop_loss(queries: list[list[float]], keys: list[list[float]], temperature: float) -> tuple[float, float]:
    """Compute loss and top-1 (percent) in plain Python."""
    total, hits = 0.0, 0
    for own, query in enumerate(queries):
        similarities = []
        for key in keys:
            dot = sum(a * b for a, b in zip(query, key, strict=True))
            similarities.append(dot / math.hypot(*query) / math.hypot(*key) / temperature)
        total -= math.log(math.exp(similarities[own]) / sum(math.exp(s) for s in similarities))
        hits += similarities[own] == max(similarities)
    return 2 * temperature * total / len(queries), 100 * hits / len(queries)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_loss_equals_a_plain_loop(batch: int, dim: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(batch * 10 + dim)
    keys = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    queries = keys + torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    expected_loss, expected_top1 = loop_loss(queries.tolist(), keys.tolist(), temperature)
    loss, top1 = contrastive_loss(queries, keys, temperature)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-9)
    if dim > 1:  # in one dimension all similarities tie at +-1
        assert top1.item() == pytest.approx(expected_top1)


def test_only_queries_get_a_gradient() -> None:
    queries, keys = torch.randn(2, 4, 8, requires_grad=True).unbind(0)
    queries.retain_grad()
    keys.retain_grad()
    loss, top1 = contrastive_loss(queries, keys, 0.2)
    loss.backward()
    assert queries.grad is not None
    assert queries.grad.abs().sum() > 0
    assert keys.grad is None
    assert not top1.requires_grad


def test_bf16_inputs_are_contrasted_in_float32() -> None:
    queries, keys = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected, _ = contrastive_loss(queries.float(), keys.float(), 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = contrastive_loss(queries, keys, 0.2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
