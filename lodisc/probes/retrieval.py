"""Retrieval within one set of images: Rank-1, Rank-5 and mean average precision."""

from __future__ import annotations

import torch
from torch import Tensor

from lodisc.probes.inputs import require_features, require_labels
from lodisc.probes.ranking import MAX_PAIRS, ranking_keys, sorted_keys

LAST = torch.iinfo(torch.long).max


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

    classes = _Classes(labels)
    rank1, rank5, precision = [], [], []
    done = 0
    for keys in ranking_keys(features[queries], features, max_pairs):
        own = queries[done : done + len(keys)]
        done += len(keys)
        ranks, counted = _ranks(keys, own, *classes.members(own))
        rank1.append(ranks[:, 0] == 1)
        rank5.append(ranks[:, 0] <= 5)
        numbers = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
        precision.append((numbers / ranks.double() * counted).sum(dim=1) / counted.sum(dim=1))
    scores = {"rank1": rank1, "rank5": rank5, "map": precision}
    return {name: 100 * float(torch.cat(values).double().mean()) for name, values in scores.items()}


class _Classes:
    """Which images belong to the class of an image."""

    def __init__(self, labels: Tensor) -> None:
        _, self.class_of, self.sizes = torch.unique(labels, return_inverse=True, return_counts=True)
        self.by_class = self.class_of.argsort(stable=True)
        self.starts = self.sizes.cumsum(0) - self.sizes

    def members(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (q, P) of the class of each image (q,), itself among them, and which entries hold one."""
        classes = self.class_of[images]
        sizes = self.sizes[classes].unsqueeze(1)
        places = torch.arange(int(sizes.max()), device=images.device)
        rows = (self.starts[classes].unsqueeze(1) + places).clamp_(max=len(self.by_class) - 1)
        return self.by_class[rows], places < sizes


def _ranks(keys: Tensor, own: Tensor, members: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the other images of each query's class rank, from 1 on and in ascending order.

    Only they are looked up in the sorted keys: a precision is the number of those found so far over their rank.

    Args:
        keys: (q, N) int64 of all images, which are overwritten.
        own: (q,) the queries' own places, which rank last.
        members: (q, P) the images of each query's class, itself among them.
        present: (q, P) which entries of `members` hold one.

    Returns:
        Ranks (q, P) int64, and which of them count.
    """
    keys.scatter_(1, own.unsqueeze(1), LAST)
    wanted = sorted_keys(keys.gather(1, members).masked_fill_(~present, LAST))
    return torch.searchsorted(sorted_keys(keys), wanted) + 1, wanted != LAST
