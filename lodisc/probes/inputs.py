"""What every probe asks of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def require_features(name: str, features: Tensor) -> None:
    """Refuse anything but a non-empty, finite (N, D) floating-point tensor.

    Raises:
        ValueError: naming the argument, and the first bad row where a value is not finite.
    """
    if features.ndim != 2 or features.numel() == 0 or not features.is_floating_point():
        raise ValueError(f"{name} must be floating point (N, D), N and D > 0; got {_described(features)}")
    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        row = int(finite.long().argmin())
        raise ValueError(f"{name} hold NaN or infinity, first in row {row}: did the encoder diverge?")


def require_labels(name: str, labels: Tensor, features: Tensor) -> None:
    """Refuse anything but one non-negative int64 label for each row of `features`.

    Raises:
        ValueError: naming the argument.
    """
    if labels.dtype != torch.long or labels.shape != features.shape[:1]:
        raise ValueError(f"{name} must be int64 ({len(features)},), got {_described(labels)}")
    if labels.min() < 0:
        raise ValueError(f"{name} must be >= 0, got {int(labels.min())} in row {int(labels.argmin())}")


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
