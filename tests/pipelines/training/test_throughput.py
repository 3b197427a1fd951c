"""Rates, by a clock that the test turns; and the peak, by the real one."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from pipelines.training.throughput import Throughput, peak_flops


def test_rates_are_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 102.0, 110.0, 110.5, 110.5])
    monkeypatch.setattr("pipelines.training.throughput.time", SimpleNamespace(perf_counter=lambda: next(clock)))
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
