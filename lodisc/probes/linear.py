"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lodisc.probes.held_out import held_out_fifth
from lodisc.probes.inputs import require_features, require_labels

# From strong to weak, so that each fit starts from the smoother one before it.
L2_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MAX_ITERATIONS = 100


@dataclass(frozen=True)
class LinearClassifier:
    """What `fit_linear` fits.

    Attributes:
        mean: (D,) of the training features.
        scale: (D,) their deviation.
        weight: (D, C) and
        bias: (C,), of logits of standardised features.
        classes: (C,) int64, the class of each logit.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def rank(self, features: Tensor, most: int = 5) -> Tensor:
        """Return the likeliest classes (N, min(most, C)) int64 of features (N, D), best first.

        Raises:
            ValueError: another shape or type than the training features', or a value that is not finite.
        """
        require_features("features", features)
        if features.shape[1] != len(self.mean):
            raise ValueError(f"the classifier has {len(self.mean)} features an image, features {features.shape[1]}")
        logits = (features.float() - self.mean) / self.scale @ self.weight + self.bias
        return self.classes[logits.topk(min(most, len(self.classes)), dim=1).indices]


def fit_linear(features: Tensor, labels: Tensor, seed: int = 0) -> LinearClassifier:
    """Fit a linear classifier, by scikit-learn.

    The features are standardised by their mean and deviation. The strength of the L2 penalty is chosen on a fifth of
    each class's images, drawn by `seed`; then the classifier is fitted to all of them.

    Args:
        features: (N, D) floating point.
        labels: (N,) int64; there must be two classes, and some class must have two images.
        seed: draws the images that choose the penalty.

    Raises:
        ValueError: an argument of another shape or type, a value that is not finite, or no class with two images.
    """
    require_features("train_features", features)
    require_labels("train_labels", labels, features)
    mean = features.float().mean(dim=0)
    # A feature that is the same for every image would otherwise be divided by rounding errors.
    scale = features.float().std(dim=0, correction=0).clamp_min(1e-6)
    x = ((features.float() - mean) / scale).cpu()
    classes, targets = labels.unique(return_inverse=True)
    if len(classes) == 1:
        return LinearClassifier(mean, scale, mean.new_zeros(len(mean), 1), mean.new_zeros(1), classes)
    # Each fit starts from the one before it.
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    _fit(model, x, targets.cpu(), _choose_l2(model, x, targets.cpu(), seed))
    weight, bias = (torch.from_numpy(values).to(mean) for values in (model.coef_.T, model.intercept_))
    if len(classes) == 2:  # One logit tells both classes apart.
        weight, bias = torch.cat([-weight, weight], dim=1), torch.cat([-bias, bias])
    return LinearClassifier(mean, scale, weight, bias, classes)


def _choose_l2(model: LogisticRegression, features: Tensor, targets: Tensor, seed: int) -> float:
    held_out = held_out_fifth(targets, seed)
    if not held_out.any():
        raise ValueError("train_labels: the linear probe needs a class with at least two images, every class has one")
    accuracies = []
    for l2 in L2_STRENGTHS:
        _fit(model, features[~held_out], targets[~held_out], l2)
        accuracies.append(model.score(features[held_out].numpy(), targets[held_out].numpy()))
    return L2_STRENGTHS[accuracies.index(max(accuracies))]


def _fit(model: LogisticRegression, features: Tensor, targets: Tensor, l2: float) -> None:
    """Minimise mean cross-entropy + l2 / 2 * |weight|^2, starting from the classifier as it is."""
    model.C = 1 / (l2 * len(features))
    # That it stops at MAX_ITERATIONS is meant: with little penalty on classes that can be parted there is no end.
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        model.fit(features.numpy(), targets.numpy())
