"""Phases and rates, by a clock that the tests turn, and by the real one."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from pipelines.training.timing import PHASES, Stopwatch, Throughput, peak_flops


def test_phases_add_up_until_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 11.0, 12.0, 20.0, 20.25])
    monkeypatch.setattr("pipelines.training.timing.time", SimpleNamespace(perf_counter=lambda: next(clock)))
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


def test_rates_are_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 102.0, 110.0, 110.5, 110.5])
    monkeypatch.setattr("pipelines.training.timing.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    meter = Throughput(batch_size=32, peak=1e9)
    rates = meter.rates(step=4, worker_flops_per_step=1e7)
    assert rates == {"throughput/images_per_second": 4 * 32 / 2.0, "throughput/mfu": 4e7 / 2.0 / 1e9}
    meter.restart(10)
    assert meter.rates(11, 0.0) == {"throughput/images_per_second": 32 / 0.5, "throughput/mfu": 0.0}


def test_peak_is_at_least_what_a_product_reaches() -> None:
    peak = peak_flops(torch.device("cpu"), torch.float32)
    a = torch.randn(1024, 1024)
    start = time.perf_counter()
    for _ in range(3):
        a @ a
    assert peak > 0.3 * 3 * 2 * 1024**3 / (time.perf_counter() - start)
