"""Differences between two ways to pretrain, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference and the interval that Student's t gives it.

    Attributes:
        mean: of the pairs' differences.
        low: where the interval begins.
        high: where it ends.
    """

    mean: float
    low: float
    high: float


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Return ours - theirs, where the values at one place have the seed in common, with its 95 % interval.

    Few seeds make a wide interval: with three of them it is the mean and 2.5 standard deviations either way.

    Raises:
        ValueError: not as many of both, or fewer than two.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"a paired difference needs two seeds or more of both, got {len(ours)} and {len(theirs)}")
    interval = stats.ttest_rel(ours, theirs).confidence_interval(CONFIDENCE)
    return Difference(float(np.mean(np.subtract(ours, theirs))), float(interval.low), float(interval.high))
