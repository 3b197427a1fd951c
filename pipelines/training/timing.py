"""Where the time of training goes: phase by phase, as rates, and operator by operator in a profiler's trace."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipelines.tracking.tracker import Tracker

PHASES = ("wait", "copy", "forward", "backward", "optimizer", "report")
WARM_UP = 1  # steps before those that are traced
OPERATORS = 40


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


class StepTrace:
    """Traces steps of this process with torch's profiler, after one more in which the profiler warms up.

    The run then has the artifacts `profile/steps-FIRST-LAST.json.gz`, a trace for https://ui.perfetto.dev or
    chrome://tracing, and `profile/steps-FIRST-LAST.txt`, the operators that took most time.
    """

    def __init__(self, steps: int, done: int, tracker: Tracker, say: Callable[[str], None]) -> None:
        """Start tracing.

        Args:
            steps: how many to trace.
            done: finished steps of the run.
            tracker: of the run that gets the trace.
            say: tells the user where the trace is.
        """
        self.name = f"steps-{done + WARM_UP + 1:08d}-{done + WARM_UP + steps:08d}"
        self.tracker, self.say = tracker, say
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profiler = profile(
            activities=[ProfilerActivity.CPU, *cuda],
            schedule=schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1),
            on_trace_ready=self._keep,
        )
        self.profiler.start()

    def step(self) -> None:
        """Tell that a training step has ended."""
        self.profiler.step()

    def close(self) -> None:
        self.profiler.stop()

    def _keep(self, traced: profile) -> None:
        sort_by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        with tempfile.TemporaryDirectory() as folder:
            trace, operators = Path(folder) / f"{self.name}.json.gz", Path(folder) / f"{self.name}.txt"
            traced.export_chrome_trace(str(trace))
            operators.write_text(traced.key_averages().table(sort_by=sort_by, row_limit=OPERATORS))
            self.tracker.log_artifact(trace, "profile")
            self.tracker.log_artifact(operators, "profile")
        self.say(f"profile: {trace.name} and {operators.name} are among the run's artifacts in MLflow, under profile/")
