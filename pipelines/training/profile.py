"""A profiler's trace of a few training steps, kept with the run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipelines.tracking.tracker import Tracker

WARM_UP = 1
OPERATORS = 40


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
