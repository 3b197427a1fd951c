"""What the method needs of torch.distributed; with no process group, a world of one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return how many workers train together."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return which of the workers this is, from 0."""
    return dist.get_rank() if _grouped() else 0


def gather(tensor: Tensor) -> Tensor:
    """Return (W * B, ...) the workers' tensors (B, ...) one after another, in rank order. No gradient flows back."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def average(tensor: Tensor) -> Tensor:
    """Return the mean of the workers' tensors. No gradient flows back."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world_size()


class _Sum(torch.autograd.Function):
    """Sum over workers; each worker's gradient is the sum of all workers' gradients."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def differentiable_sum(tensor: Tensor) -> Tensor:
    """Return the sum of the workers' tensors, with gradients through the sum to every worker."""
    if world_size() == 1:
        return tensor
    result: Tensor = _Sum.apply(tensor)
    return result
