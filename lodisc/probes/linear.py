"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lodisc.probes.inputs import require_features, require_labels

# From strong to weak, so that each fit starts from the smoother one before it.
L2_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MAX_ITERATIONS = 100
CHUNK = 2**16
SMALL_FIT = 2**28  # multiplications in one pass over the training features


def linear_probe(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, seed: int = 0
) -> dict[str, float]:
    """Fit a linear classifier to training features and return its accuracy on test features.

    The features are standardised by the training set's mean and deviation. The strength of the L2 penalty is chosen on
    a fifth of each class's training images, drawn by `seed`; then the classifier is fitted to all of them. The test
    set is used once, for the result. A test image whose class the training set lacks is counted, as wrong.

    Args:
        train_features: (N, D) floating point.
        train_labels: (N,) int64; some class must have two images.
        test_features: (M, D) floating point.
        test_labels: (M,) int64.
        seed: draws the images that choose the penalty.

    Returns:
        "top1" and "top5" accuracy in percent; with fewer than five classes "top5" ranks them all.

    Raises:
        ValueError: an argument of another shape or type, a value that is not finite, or no class with two images.
    """
    require_features("train_features", train_features)
    require_features("test_features", test_features)
    require_labels("test_labels", test_labels, test_features)
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features has {train_features.shape[1]} features an image, test_features {test_features.shape[1]}"
        )
    classifier = fit_linear(train_features, train_labels, seed)
    hits = classifier.rank(test_features) == test_labels.unsqueeze(1)
    return {"top1": _percent(hits[:, 0]), "top5": _percent(hits.any(dim=1))}


@dataclass(frozen=True)
class LinearClassifier:
    """What `fit_linear` fits.

    Attributes:
        mean: (D,) of the training features.
        scale: (D,) their deviation.
        layer: standardised features (N, D) -> (N, C) logits.
        classes: (C,) int64, the class of each logit.
    """

    mean: Tensor
    scale: Tensor
    layer: torch.nn.Linear
    classes: Tensor

    def rank(self, features: Tensor, most: int = 5) -> Tensor:
        """Return the likeliest classes (N, min(most, C)) int64 of features (N, D), best first.

        Raises:
            ValueError: another shape or type than the training features', or a value that is not finite.
        """
        require_features("features", features)
        if features.shape[1] != len(self.mean):
            raise ValueError(f"the classifier has {len(self.mean)} features an image, features {features.shape[1]}")
        x = (features.float() - self.mean) / self.scale
        return self.classes[_logits(self.layer, x).topk(min(most, len(self.classes)), dim=1).indices]


def fit_linear(features: Tensor, labels: Tensor, seed: int = 0) -> LinearClassifier:
    """Fit a linear classifier as `linear_probe` says.

    Args:
        features: (N, D) floating point.
        labels: (N,) int64; some class must have two images.
        seed: draws the images that choose the penalty.

    Raises:
        ValueError: an argument of another shape or type, a value that is not finite, or no class with two images.
    """
    require_features("train_features", features)
    require_labels("train_labels", labels, features)
    mean = features.float().mean(dim=0)
    # A feature that is the same for every image would otherwise be divided by rounding errors.
    scale = features.float().std(dim=0, correction=0).clamp_min(1e-6)
    x = (features.float() - mean) / scale
    classes, targets = labels.unique(return_inverse=True)
    with _one_thread_if(x.numel() * len(classes) < SMALL_FIT):
        layer = _start(x, len(classes))
        _fit(layer, x, targets, _choose_l2(x, targets, seed))
    return LinearClassifier(mean, scale, layer, classes)


@contextmanager
def _one_thread_if(small: bool) -> Iterator[None]:
    """Hold torch to one thread: thousands of small products take a hundred times as long where threads share a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if small else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _choose_l2(features: Tensor, targets: Tensor, seed: int) -> float:
    held_out = held_out_fifth(targets, seed)
    if not held_out.any():
        raise ValueError("train_labels: the linear probe needs a class with at least two images, every class has one")
    classifier = _start(features, int(targets.max()) + 1)
    accuracies = []
    for l2 in L2_STRENGTHS:
        _fit(classifier, features[~held_out], targets[~held_out], l2)
        predictions = _logits(classifier, features[held_out]).argmax(dim=1)
        accuracies.append(_percent(predictions == targets[held_out]))
    return L2_STRENGTHS[accuracies.index(max(accuracies))]


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


def _start(features: Tensor, classes: int) -> torch.nn.Linear:
    classifier = torch.nn.Linear(features.shape[1], classes, device=features.device)
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    return classifier


def _fit(classifier: torch.nn.Linear, features: Tensor, targets: Tensor, l2: float) -> None:
    """Minimise mean cross-entropy + l2 / 2 * |weight|^2, starting from the classifier as it is."""
    optimizer = torch.optim.LBFGS(
        classifier.parameters(), max_iter=MAX_ITERATIONS, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    @torch.enable_grad()
    def closure() -> Tensor:
        optimizer.zero_grad()
        total = l2 / 2 * classifier.weight.square().sum()
        total.backward()
        for x, y in zip(features.split(CHUNK), targets.split(CHUNK), strict=True):
            loss = F.cross_entropy(classifier(x), y, reduction="sum") / len(features)
            loss.backward()
            total = total.detach() + loss.detach()
        return total.detach()

    optimizer.step(closure)


@torch.no_grad()
def _logits(classifier: torch.nn.Linear, features: Tensor) -> Tensor:
    return torch.cat([classifier(x) for x in features.split(CHUNK)])


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())
