"""How features fill their space, without labels: effective rank, alignment and uniformity."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lodisc.probes.inputs import require_features

CHUNK = 2**14
MAX_PAIRS = 2**22


def rankme(features: Tensor) -> float:
    """Return the effective rank of features (N, D), between 1 and min(N, D).

    The exponential of the entropy of the normalised singular values (Garrido et al. 2023, arXiv 2210.02885,
    equation 3), which are read off the D x D Gram matrix in float64. Features are taken as they are, not centred.

    Raises:
        ValueError: another shape or type, or a value that is not finite.
    """
    require_features("features", features)
    gram = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for chunk in features.split(CHUNK):
        gram += chunk.double().T @ chunk.double()
    rank = min(features.shape)
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()[-rank:]
    # The paper's epsilon, which keeps the logarithm of an empty direction finite.
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1e-7
    return float((-share * share.log()).sum().exp())


def alignment(x: Tensor, y: Tensor) -> float:
    """Return the mean squared distance between the unit features of positive pairs, in [0, 4]; less is better.

    Wang and Isola 2020 (arXiv 2005.10242), equation 1 with alpha = 2.

    Args:
        x: (N, D) floating point, one view of each image.
        y: (N, D) floating point, another view of the same images.

    Raises:
        ValueError: another or a different shape or type, or a value that is not finite.
    """
    require_features("x", x)
    require_features("y", y)
    if x.shape != y.shape:
        raise ValueError(f"x and y must pair up row by row, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    total = 0.0
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        total += float((F.normalize(a.double(), dim=1) - F.normalize(b.double(), dim=1)).square().sum())
    return total / len(x)


def uniformity(x: Tensor, max_images: int = 10_000, seed: int = 0, max_pairs: int = MAX_PAIRS) -> float:
    """Return the logarithm of the mean Gaussian potential of all pairs of images, in [-8, 0]; less is more uniform.

    Wang and Isola 2020 (arXiv 2005.10242), equation 2 with t = 2, over distinct images.

    Args:
        x: (N, D) floating point, N at least 2.
        max_images: a larger set is represented by so many images, drawn by `seed`.
        seed: of that draw.
        max_pairs: how many similarities are held at a time.

    Raises:
        ValueError: another shape or type, a value that is not finite, or fewer than two images.
    """
    require_features("x", x)
    if len(x) < 2:
        raise ValueError(f"x: uniformity needs at least two images, got {len(x)}")
    if len(x) > max_images:
        drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:max_images]
        x = x[drawn.to(x.device)]
    unit = F.normalize(x.double(), dim=1)
    total = 0.0
    for chunk in unit.split(max(1, max_pairs // len(unit))):
        total += float((-2 * torch.cdist(chunk, unit).square()).exp().sum())
    # An image is at distance 0 of itself: that potential of 1 is no pair.
    return math.log((total - len(unit)) / (len(unit) * (len(unit) - 1)))
