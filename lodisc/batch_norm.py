"""Batch normalisation with the statistics of the global batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lodisc.distributed import differentiable_sum, world_size


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose training statistics span all workers.

    torch's SyncBatchNorm refuses CPU tensors; this one works over gloo too. Every worker must hold the same number of
    rows. Statistics are computed in float32 (or float64 for float64 input) in two passes, mean then variance, so W
    workers agree with one to rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C) over the W * B rows of all workers."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            rows = x.shape[0] * world_size()
            mean = differentiable_sum(wide.sum(dim=0)) / rows
            centred = wide - mean
            variance = differentiable_sum(centred.square().sum(dim=0)) / rows
            self._track(mean.detach(), variance.detach(), rows)
            result = centred * torch.rsqrt(variance + self.eps)
            if self.affine:
                result = result * self.weight + self.bias
            return result.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, rows: int) -> None:
        assert self.momentum is not None and self.running_mean is not None
        assert self.running_var is not None and self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (rows / (rows - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)
