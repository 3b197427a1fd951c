"""In a world of one, global batch norm is torch's batch norm. Two workers: see test_distributed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lodisc.batch_norm import GlobalBatchNorm1d


@pytest.mark.parametrize("affine", [True, False])
def test_one_worker_equals_batch_norm(affine: bool) -> None:
    torch.manual_seed(0)
    ours, plain = GlobalBatchNorm1d(5, affine=affine), nn.BatchNorm1d(5, affine=affine)
    for step in range(3):
        x = (torch.randn(8, 5) * 3 + step).requires_grad_()
        same = x.detach().clone().requires_grad_()
        weights = torch.randn(8, 5)
        (ours(x) * weights).sum().backward()
        (plain(same) * weights).sum().backward()
        torch.testing.assert_close(x.grad, same.grad)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


def test_a_copy_and_a_state_dict_are_batch_norms() -> None:
    ours = GlobalBatchNorm1d(3)
    nn.BatchNorm1d(3).load_state_dict(copy.deepcopy(ours).state_dict())
