"""Contenders take turns."""

from __future__ import annotations

from benchmarks.timing import interleave, spread


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 2
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_spread_is_the_median_and_the_extremes() -> None:
    assert spread([3.0, 1.0, 5.0]) == {"median": 3.0, "min": 1.0, "max": 5.0}
