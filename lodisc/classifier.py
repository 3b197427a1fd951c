"""Linear classifiers on an encoder: on its frozen features, or trained together with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lodisc.encoder import Encoder


class Classifier(nn.Module):
    """An encoder with one or more linear heads, which all start from the same weights.

    Attributes:
        encoder: gives the features.
        frozen: whether the encoder stays as it is; otherwise all of it is trained, a frozen patch embedding too.
        heads: (B, D) features -> (B, C) logits each.
    """

    def __init__(self, encoder: Encoder, classes: int, heads: int = 1, frozen: bool = True) -> None:
        super().__init__()
        self.encoder, self.frozen = encoder, frozen
        encoder.requires_grad_(not frozen)
        # Drawn first: the weights do not depend on how many heads there are.
        weight = 0.01 * torch.randn(classes, encoder.feature_dim)
        self.heads = nn.ModuleList(nn.Linear(encoder.feature_dim, classes) for _ in range(heads))
        for head in self.heads.children():
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.bias)
            with torch.no_grad():
                head.weight.copy_(weight)
        self.train()

    def train(self, mode: bool = True) -> Classifier:
        """Set training mode, in which a frozen encoder still computes as in evaluation."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return features (B, D) float32 of normalised images (B, 3, H, W); without gradient where frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.encoder(images)
        return features.float()

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (heads, B, C) float32 of features (B, D) float32."""
        with torch.autocast(features.device.type, enabled=False):
            return torch.stack([head(features) for head in self.heads])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (heads, B, C) float32 of normalised images (B, 3, H, W)."""
        return self.classify(self.features(images))


def head_losses(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return each head's cross-entropy (heads,), the mean over images of weight * loss.

    Args:
        logits: (heads, B, C).
        targets: (B,) int64.
        weights: (heads, B), how much an image counts to a head.
    """
    heads, batch, classes = logits.shape
    each = F.cross_entropy(logits.reshape(-1, classes), targets.repeat(heads), reduction="none")
    return (each.view(heads, batch) * weights).mean(dim=1)


def hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return for how many images each head has the class first, and among the first five: (heads, 2) float32.

    Args:
        logits: (heads, B, C); with fewer than five classes all of them are "the first five".
        targets: (B,) int64; a number that is no class is never hit.
    """
    ranked = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
    correct = ranked == targets.view(1, -1, 1)
    return torch.stack([correct[..., 0].sum(dim=1), correct.any(dim=2).sum(dim=1)], dim=1).float()
