"""Time contenders in turn, so that a machine that slows down or speeds up does so for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Call every contender once to warm up, then `rounds` times in turn (A B A B ...).

    Returns:
        The seconds of each contender's calls, without the first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median, the fastest and the slowest call."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
