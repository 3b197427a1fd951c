"""How fast training runs, and how near that is to what the device can do."""

from __future__ import annotations

import time

import torch


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations a second of a large matrix product on `device` in `dtype`."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        _synchronise(device)
        start = time.perf_counter()
        a @ b
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Throughput:
    """Rates between two looks at the clock; time spent outside training can be left out.

    MFU (model FLOPs utilisation) counts the operations of the step that was run and divides by the peak measured on
    the same device in the same number format.
    """

    def __init__(self, batch_size: int, peak: float) -> None:
        self.batch_size, self.peak = batch_size, peak
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin a new interval at `step` finished steps."""
        self.step, self.time = step, time.perf_counter()

    def rates(self, step: int, worker_flops_per_step: float) -> dict[str, float]:
        """Return images/s over all workers and one worker's MFU since the last call, and begin a new interval."""
        steps, seconds = step - self.step, time.perf_counter() - self.time
        self.restart(step)
        return {
            "throughput/images_per_second": steps * self.batch_size / seconds,
            "throughput/mfu": steps * worker_flops_per_step / seconds / self.peak,
        }
