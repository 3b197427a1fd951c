"""Phases of a step, against the clock."""

from __future__ import annotations

import time

import pytest
import torch

from pipelines.stopwatch import PHASES, Stopwatch


def test_phases_add_up_until_they_are_read() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with stopwatch.phase("wait"):
            time.sleep(0.05)
    with stopwatch.phase("forward"):
        time.sleep(0.02)
    seconds = stopwatch.seconds()
    assert tuple(seconds) == PHASES
    assert seconds["wait"] == pytest.approx(0.1, rel=0.3)
    assert seconds["forward"] == pytest.approx(0.02, rel=0.5)
    assert seconds["backward"] == 0
    assert set(stopwatch.seconds().values()) == {0.0}


def test_phases_are_ranges_of_a_trace() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with torch.profiler.profile() as traced, stopwatch.phase("optimizer"):
        torch.ones(3) + 1
    assert "optimizer" in {event.key for event in traced.key_averages()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_timed_by_its_own_work() -> None:
    stopwatch = Stopwatch(torch.device("cuda"))
    a = torch.randn(8192, 8192, device="cuda")
    a @ a
    torch.cuda.synchronize()
    started = time.perf_counter()
    with stopwatch.phase("forward"):
        for _ in range(20):
            a @ a
    asked = time.perf_counter() - started
    assert stopwatch.seconds()["forward"] > 2 * asked
