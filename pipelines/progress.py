"""Show the user where the run is: a bar in a terminal, plain lines elsewhere, nothing for one run of many."""

from __future__ import annotations

import time
from typing import Literal

from ray.experimental import tqdm_ray

SECONDS_BETWEEN_LINES = 15.0
Style = Literal["bar", "lines", "nothing"]


class Progress:
    """Progress of one run, drawn by the driver although a remote worker reports it."""

    def __init__(
        self, total_steps: int, steps_per_epoch: int, step: int, style: Style, task: str = "pretraining"
    ) -> None:
        self.total, self.steps_per_epoch = total_steps, steps_per_epoch
        self.style, self.task = style, task
        self.bar = tqdm_ray.tqdm(total=total_steps, desc=task, unit="step") if style == "bar" else None
        self.shown = step
        self.last_line = -SECONDS_BETWEEN_LINES
        if self.bar:
            self.bar.update(step)

    def show(self, step: int, summary: str) -> None:
        """Draw `step` finished steps, and how training stands in a few words."""
        if self.style == "nothing":
            return
        if self.bar:
            self.bar.set_description(f"{self.task}, {summary}")
            self.bar.update(step - self.shown)
            self.shown = step
        elif step == self.total or time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            epoch = step / self.steps_per_epoch
            print(f"step {step}/{self.total}  epoch {epoch:.2f}  {summary}", flush=True)

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self.bar:
            tqdm_ray.safe_print(line)
        elif self.style == "lines":
            print(line, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.close()
