"""Schedules: first and last values, and the shape between."""

from __future__ import annotations

import pytest

from lodisc.schedules import learning_rate_at, momentum_at


def test_momentum_rises_from_start_to_one() -> None:
    values = [momentum_at(step, 100, 0.99) for step in range(101)]
    assert values[0] == pytest.approx(0.99, abs=1e-12)
    assert values[50] == pytest.approx(0.995, abs=1e-12)
    assert values[100] == pytest.approx(1.0, abs=1e-12)
    assert values == sorted(values)
    assert max(values) <= 1


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    values = [learning_rate_at(step, 100, 10, 0.5) for step in range(101)]
    assert values[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert values[10] == pytest.approx(0.5)
    assert values[55] == pytest.approx(0.25)
    assert values[100] == pytest.approx(0.0, abs=1e-12)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[99] > 0, "the last step still learns"


def test_learning_rate_needs_no_warm_up() -> None:
    assert learning_rate_at(0, 10, 0, 0.5) == pytest.approx(0.5)
    assert learning_rate_at(9, 10, 9, 0.5) == pytest.approx(0.5)
