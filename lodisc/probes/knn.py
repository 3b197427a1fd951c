"""Weighted k-nearest-neighbour accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from lodisc.probes.inputs import require_features, require_labels
from lodisc.probes.ranking import MAX_PAIRS, places_of, ranking_keys, similarities_of


def knn_accuracy(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    max_pairs: int = MAX_PAIRS,
) -> float:
    """Return the share of queries whose class the k nearest gallery images vote for, in percent.

    A query whose class the gallery lacks is counted, as wrong.

    Args:
        gallery: (G, D) floating point.
        gallery_labels: (G,) int64.
        queries: (Q, D) floating point, other images than the gallery's.
        query_labels: (Q,) int64.
        k, temperature, max_pairs: of `knn_predictions`.

    Raises:
        ValueError: an argument of another shape or type, or a value that is not finite.
    """
    require_features("queries", queries)
    require_labels("query_labels", query_labels, queries)
    predictions = knn_predictions(gallery, gallery_labels, queries, k, temperature, max_pairs)
    return 100 * float((predictions == query_labels).double().mean())


def knn_predictions(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """Return the class (Q,) int64 that the k nearest gallery images of each query vote for.

    A neighbour of cosine similarity s votes with weight exp(s / temperature) (Wu et al. 2018, arXiv 1805.01978,
    section 3.4). Of equally near neighbours the first in the gallery counts; of equal votes the lowest class wins.

    Args:
        gallery: (G, D) floating point.
        gallery_labels: (G,) int64.
        queries: (Q, D) floating point, other images than the gallery's.
        k: neighbours that vote; a smaller gallery votes as a whole.
        temperature: of the votes.
        max_pairs: how many similarities are held at a time.

    Raises:
        ValueError: an argument of another shape or type, or a value that is not finite.
    """
    require_features("gallery", gallery)
    require_features("queries", queries)
    require_labels("gallery_labels", gallery_labels, gallery)
    if gallery.shape[1] != queries.shape[1]:
        raise ValueError(f"gallery has {gallery.shape[1]} features an image, queries have {queries.shape[1]}")
    if k < 1 or temperature <= 0:
        raise ValueError(f"k must be at least 1 and temperature > 0, got {k} and {temperature}")

    classes, gallery_classes = gallery_labels.unique(return_inverse=True)
    predictions = []
    for keys in ranking_keys(queries, gallery, max_pairs):
        nearest = keys.topk(min(k, len(gallery)), dim=1, largest=False).values
        weights = (similarities_of(nearest) / temperature).exp()
        votes = weights.new_zeros(len(keys), len(classes))
        votes.scatter_add_(1, gallery_classes[places_of(nearest)], weights)
        # Rounding hides the order in which equal votes were summed.
        predictions.append(classes[votes.float().argmax(dim=1)])
    return torch.cat(predictions)
