"""Show the user where the run is: a bar in a terminal, plain lines elsewhere, nothing for one run of many."""

from __future__ import annotations

import time
from typing import Literal

from ray.experimental import tqdm_ray

SECONDS_BETWEEN_LINES = 15.0
Style = Literal["bar", "lines", "nothing"]


class Progress:
    """Progress of one run, drawn by the driver although a remote worker reports it."""

    def __init__(self, total_steps: int, steps_per_epoch: int, step: int, style: Style) -> None:
        self.total, self.steps_per_epoch = total_steps, steps_per_epoch
        self.style = style
        self.bar = tqdm_ray.tqdm(total=total_steps, desc="pretraining", unit="step") if style == "bar" else None
        self.shown = step
        self.last_line = -SECONDS_BETWEEN_LINES
        if self.bar:
            self.bar.update(step)

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Draw `step` finished steps."""
        if self.style == "nothing":
            return
        if self.bar:
            self.bar.set_description(f"pretraining, {_summary(metrics)}")
            self.bar.update(step - self.shown)
            self.shown = step
        elif step == self.total or time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            epoch = step / self.steps_per_epoch
            print(f"step {step}/{self.total}  epoch {epoch:.2f}  {_summary(metrics)}", flush=True)

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self.bar:
            tqdm_ray.safe_print(line)
        elif self.style == "lines":
            print(line, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.close()


def _summary(metrics: dict[str, float]) -> str:
    return (
        f"loss {metrics['loss']:.4f}  contrast top-1 {metrics['contrastive/top1']:.1f} %  "
        f"{metrics['throughput/images_per_second']:.0f} images/s"
    )
