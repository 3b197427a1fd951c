"""Phases of a step, by a clock that the tests turn, and by the real one."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from pipelines.training.stopwatch import PHASES, Stopwatch


def test_phases_add_up_until_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 11.0, 12.0, 20.0, 20.25])
    monkeypatch.setattr("pipelines.training.stopwatch.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    stopwatch = Stopwatch(torch.device("cpu"))
    for name in ("wait", "wait", "forward"):
        with stopwatch.phase(name):
            pass
    seconds = stopwatch.seconds()
    assert tuple(seconds) == PHASES
    assert seconds == dict.fromkeys(PHASES, 0.0) | {"wait": 1.5, "forward": 0.25}
    assert set(stopwatch.seconds().values()) == {0.0}


def test_the_clock_runs_while_work_is_done() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    start = time.perf_counter()
    with stopwatch.phase("wait"):
        time.sleep(0.02)
    assert 0.02 <= stopwatch.seconds()["wait"] <= time.perf_counter() - start


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
