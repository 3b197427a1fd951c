"""Which classes are taken for which others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another one.

    Attributes:
        truth: the class that they are of.
        predicted: the class that they were taken for.
        count: how many.
        of: how many images the true class has.
    """

    truth: int
    predicted: int
    count: int
    of: int


def confusions(truth: Tensor, predicted: Tensor) -> list[Confusion]:
    """Return every pair of classes of which images of the first were taken for the second.

    Args:
        truth: (N,) int64 classes, >= 0.
        predicted: (N,) int64 classes, >= 0.

    Returns:
        The most frequent first; of equally frequent ones the larger share of its class, then the lowest classes.

    Raises:
        ValueError: the arguments are not two int64 tensors of one length.
    """
    if truth.dtype != torch.long or predicted.dtype != torch.long or truth.ndim != 1 or truth.shape != predicted.shape:
        raise ValueError(
            f"truth and predicted must be int64 (N,), got {tuple(truth.shape)} and {tuple(predicted.shape)}"
        )
    wrong = truth != predicted
    pairs, counts = torch.stack([truth[wrong], predicted[wrong]], dim=1).unique(dim=0, return_counts=True)
    sizes = truth.bincount()
    found = [
        Confusion(true, taken_for, count, int(sizes[true]))
        for (true, taken_for), count in zip(pairs.tolist(), counts.tolist(), strict=True)
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.of, pair.truth, pair.predicted))
