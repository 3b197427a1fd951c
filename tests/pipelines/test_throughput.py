"""Rates, against the clock."""

from __future__ import annotations

import time

import pytest
import torch

from pipelines.throughput import Throughput, peak_flops


def test_rates_are_work_over_time() -> None:
    meter = Throughput(batch_size=32, peak=1e9)
    start = time.perf_counter()
    time.sleep(0.2)
    rates = meter.rates(step=4, worker_flops_per_step=1e7)
    seconds = time.perf_counter() - start
    assert rates["throughput/images_per_second"] == pytest.approx(4 * 32 / seconds, rel=0.1)
    assert rates["throughput/mfu"] == pytest.approx(4e7 / seconds / 1e9, rel=0.1)
    meter.restart(10)
    time.sleep(0.05)
    assert meter.rates(11, 0.0)["throughput/images_per_second"] == pytest.approx(32 / 0.05, rel=0.3)


def test_peak_is_at_least_what_a_product_reaches() -> None:
    peak = peak_flops(torch.device("cpu"), torch.float32)
    a = torch.randn(1024, 1024)
    start = time.perf_counter()
    for _ in range(3):
        a @ a
    assert peak > 0.3 * 3 * 2 * 1024**3 / (time.perf_counter() - start)
