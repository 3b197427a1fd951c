"""Show the user where the run is: a bar in a terminal, plain lines elsewhere, nothing for one run of many."""

from __future__ import annotations

import sys
import time
from typing import Literal

from ray.experimental import tqdm_ray

SECONDS_BETWEEN_LINES = 15.0
Style = Literal["bar", "lines", "nothing"]


def terminal_style() -> Style:
    """Return how to draw where the user looks: a bar in a terminal, lines in a log."""
    return "bar" if sys.stderr.isatty() else "lines"


class Meter:
    """How much of some work is done."""

    def __init__(self, total: int, doing: str, unit: str, done: int, style: Style) -> None:
        self.total, self.style = total, style
        self.bar = tqdm_ray.tqdm(total=total, desc=doing, unit=unit) if style == "bar" else None
        self.shown = done
        self.last_line = -SECONDS_BETWEEN_LINES
        if self.bar:
            self.bar.update(done)

    def draw(self, done: int, description: str, line: str) -> None:
        """Draw `done` units: a bar with its description, or, at the end and every few seconds, a line."""
        if self.bar:
            self.bar.set_description(description)
            self.bar.update(done - self.shown)
            self.shown = done
        elif self.style == "lines" and (done == self.total or self._due()):
            self.last_line = time.monotonic()
            print(line, flush=True)

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self.bar:
            tqdm_ray.safe_print(line)
        elif self.style == "lines":
            print(line, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.close()

    def _due(self) -> bool:
        return time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES


class Progress(Meter):
    """Progress of one run, drawn by the driver although a remote worker reports it."""

    def __init__(
        self, total_steps: int, steps_per_epoch: int, step: int, style: Style, task: str = "pretraining"
    ) -> None:
        super().__init__(total_steps, task, "step", step, style)
        self.steps_per_epoch, self.task = steps_per_epoch, task

    def show(self, step: int, summary: str) -> None:
        """Draw `step` finished steps, and how training stands in a few words."""
        epoch = step / self.steps_per_epoch
        self.draw(step, f"{self.task}, {summary}", f"step {step}/{self.total}  epoch {epoch:.2f}  {summary}")
