"""Retrieval within one set of images: Rank-1, Rank-5 and mean average precision."""

from __future__ import annotations

import torch
from torch import Tensor

from lodisc.probes.inputs import require_features, require_labels
from lodisc.probes.ranking import MAX_PAIRS, rankings


def retrieval_queries(labels: Tensor) -> Tensor:
    """Return the rows (Q,) int64 of `labels` (N,) that can be queries: those whose class has another image."""
    _, classes, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    return torch.argwhere(sizes[classes] > 1).squeeze(1)


def retrieval_scores(features: Tensor, labels: Tensor, max_pairs: int = MAX_PAIRS) -> dict[str, float]:
    """Search for each image's class among all other images by cosine similarity (the paper's protocol, section 4).

    Images that are the only one of their class have nothing to find. They are no queries, but still stand among the
    images that are searched. Of equally similar images the first comes first.

    Args:
        features: (N, D) floating point.
        labels: (N,) int64.
        max_pairs: how many similarities are held at a time.

    Returns:
        In percent, means over the queries: "rank1" and "rank5", an image of the class is the first or among the first
        five; "map", average precision over the whole ranking (mean of the precision at each image of the class).

    Raises:
        ValueError: an argument of another shape or type, a value that is not finite, or no class with two images.
    """
    require_features("features", features)
    require_labels("labels", labels, features)
    queries = retrieval_queries(labels)
    if len(queries) == 0:
        raise ValueError("labels: retrieval needs a class with at least two images, every class has one")

    places = torch.arange(1, len(features), device=features.device, dtype=torch.float64)
    rank1, rank5, precision = [], [], []
    done = 0
    for _, rows in rankings(features[queries], features, max_pairs):
        own = queries[done : done + len(rows)].unsqueeze(1)
        done += len(rows)
        others = rows[rows != own].view(len(rows), -1)
        found = labels[others] == labels[own]
        rank1.append(found[:, 0])
        rank5.append(found[:, :5].any(dim=1))
        precision.append((found.cumsum(dim=1) / places * found).sum(dim=1) / found.sum(dim=1))
    scores = {"rank1": rank1, "rank5": rank5, "map": precision}
    return {name: 100 * float(torch.cat(values).double().mean()) for name, values in scores.items()}
