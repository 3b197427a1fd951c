"""Where the time of training goes, phase by phase, without making a device wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PHASES = ("wait", "copy", "forward", "backward", "optimizer", "report")


class Stopwatch:
    """Adds up the time that a worker spends in each phase.

    On a GPU, phases lie between events in its queue, which are read later: a phase there is what it kept the GPU from
    the next one, so that a wait which the GPU spends working costs nothing. Elsewhere the clock tells. Each phase is
    also a range of that name in a profiler's trace.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._laps: list[tuple[str, Any, Any]] = []  # begin and end: CUDA events, or seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside as `name`, one of PHASES."""
        assert name in PHASES, name
        with torch.profiler.record_function(name):
            start = self._mark()
            yield
            self._laps.append((name, start, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every phase since the last call."""
        if self.on_gpu:
            torch.cuda.synchronize()
        totals = dict.fromkeys(PHASES, 0.0)
        for name, start, end in self._laps:
            totals[name] += start.elapsed_time(end) / 1000 if self.on_gpu else end - start
        self._laps.clear()
        return totals

    def _mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
