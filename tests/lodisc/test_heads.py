"""Projector and predictor: layers as MoCo v3 stacks them."""

from __future__ import annotations

import torch
from torch import nn

from lodisc.batch_norm import GlobalBatchNorm1d
from lodisc.heads import predictor, projector


def kinds(head: nn.Sequential) -> list[type[nn.Module]]:
    return [type(layer) for layer in head]


def test_projector_is_three_linear_layers() -> None:
    head = projector(6, 10, 4, dropout=0.0)
    inner = [nn.Linear, GlobalBatchNorm1d, nn.ReLU]
    assert kinds(head) == [*inner, *inner, nn.Linear, GlobalBatchNorm1d]
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(6, 10), (10, 10), (10, 4)]
    assert all(layer.bias is None for layer in linear)
    assert [layer.affine for layer in head if isinstance(layer, GlobalBatchNorm1d)] == [True, True, False]


def test_predictor_is_two_linear_layers() -> None:
    head = predictor(4, 10, dropout=0.0)
    assert kinds(head) == [nn.Linear, GlobalBatchNorm1d, nn.ReLU, nn.Linear, GlobalBatchNorm1d]
    assert head(torch.randn(3, 4)).shape == (3, 4)


def test_dropout_follows_each_relu() -> None:
    head = projector(6, 10, 4, dropout=0.2)
    inner = [nn.Linear, GlobalBatchNorm1d, nn.ReLU, nn.Dropout]
    assert kinds(head) == [*inner, *inner, nn.Linear, GlobalBatchNorm1d]
    x = torch.randn(8, 6)
    assert not torch.equal(head(x), head(x))
    assert torch.equal(head.eval()(x), head(x))
