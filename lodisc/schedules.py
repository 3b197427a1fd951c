"""Schedules over a run, as plain functions of the step."""

from __future__ import annotations

import math


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate of `step` (0 is the first): linear warm-up to `peak`, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def momentum_at(step: int, total_steps: int, start: float) -> float:
    """Return the momentum encoder's m at `step`: from `start` to 1 by half a cosine (MoCo v3)."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / total_steps))
