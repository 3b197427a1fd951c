"""Projector and predictor, the MLPs between the encoder's features and the contrast (MoCo v3)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from lodisc.batch_norm import GlobalBatchNorm1d


def projector(input_dim: int, hidden_dim: int, output_dim: int, dropout: float) -> nn.Sequential:
    """Return three linear layers, (B, input_dim) to (B, output_dim)."""
    return _mlp([input_dim, hidden_dim, hidden_dim, output_dim], dropout)


def predictor(input_dim: int, hidden_dim: int, dropout: float) -> nn.Sequential:
    """Return two linear layers, (B, input_dim) to (B, input_dim)."""
    return _mlp([input_dim, hidden_dim, input_dim], dropout)


def _mlp(widths: list[int], dropout: float) -> nn.Sequential:
    """Linear layers without bias; batch norm and ReLU between them, batch norm without affine after the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), GlobalBatchNorm1d(after), nn.ReLU(inplace=True)]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    layers += [nn.Linear(widths[-2], widths[-1], bias=False), GlobalBatchNorm1d(widths[-1], affine=False)]
    return nn.Sequential(*layers)
