"""Time contenders in turn, so that a machine that slows down or speeds up does so for all of them."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Call every contender `rounds` times in turn (A B A B ...) and return the seconds of each one's calls.

    Whoever calls has warmed them up: a first call allocates memory and chooses kernels.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def in_new_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a process of its own, started afresh: with all cores, no memory and no threads of this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median, the fastest and the slowest call."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
