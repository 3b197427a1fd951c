"""Images that are held out of a labelled set, to choose by."""

from __future__ import annotations

import torch
from torch import Tensor


def held_out_fifth(targets: Tensor, seed: int) -> Tensor:
    """Return a mask (N,) of a fifth of each class of targets (N,) int64, drawn by `seed`.

    Of a class that has two images it is at least one, of a class that has one none.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed)).to(targets.device)
    # Sorted by class, in random order within: an image's place in its class is its distance from the class's first.
    order = order[targets[order].argsort(stable=True)]
    sizes = targets.bincount()
    place = torch.arange(len(targets), device=targets.device) - (sizes.cumsum(0) - sizes)[targets[order]]
    quota = torch.where(sizes > 1, (sizes // 5).clamp_min(1), 0)
    mask = torch.zeros_like(targets, dtype=torch.bool)
    mask[order] = place < quota[targets[order]]
    return mask
