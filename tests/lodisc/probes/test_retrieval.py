from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from lodisc.probes.retrieval import retrieval_queries, retrieval_scores


def slow_retrieval(features: Tensor, labels: Tensor) -> dict[str, float]:
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    rank1, rank5, precisions = [], [], []
    for query in range(len(features)):
        others = [i for i in range(len(features)) if i != query]
        similarity = {i: round(float(unit[query] @ unit[i]), 7) for i in others}
        found = [labels[i] == labels[query] for i in sorted(others, key=lambda i: (-similarity[i], i))]
        if not any(found):
            continue
        rank1.append(found[0])
        rank5.append(any(found[:5]))
        hits = [place for place, hit in enumerate(found, start=1) if hit]
        precisions.append(np.mean([number / place for number, place in enumerate(hits, start=1)]))
    return {"rank1": 100 * np.mean(rank1), "rank5": 100 * np.mean(rank5), "map": 100 * np.mean(precisions)}


@pytest.mark.parametrize("images", [3, 30, 75])
@pytest.mark.parametrize("classes", [1, 4, 25])
@pytest.mark.parametrize("max_pairs", [1, 100, 2**22])
def test_equals_one_query_at_a_time(images: int, classes: int, max_pairs: int) -> None:
    generator = torch.Generator().manual_seed(images)
    labels = torch.arange(images) % min(classes, images - 1)
    features = torch.randn(images, 5, generator=generator)
    features[images // 2 :: 7] = features[0]

    scores = retrieval_scores(features, labels, max_pairs)

    assert scores == pytest.approx(slow_retrieval(features, labels))


@pytest.mark.parametrize("max_pairs", [1, 500, 2**22])
def test_classes_of_very_different_sizes(max_pairs: int) -> None:
    """One class of 40 images beside small ones and images alone, in no order."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([3] * 40 + [9, 9, 1, 1, 1, 5, 7])[torch.randperm(47, generator=generator)]
    features = torch.randn(47, 4, generator=generator)
    assert retrieval_scores(features, labels, max_pairs) == pytest.approx(slow_retrieval(features, labels))


def test_average_precision_is_sklearns() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(5, (60,), generator=generator)
    features = torch.randn(60, 7, generator=generator)
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    expected = [
        average_precision_score(np.delete(labels.numpy() == int(labels[i]), i), np.delete(unit @ unit[i], i))
        for i in range(60)
    ]
    assert retrieval_scores(features, labels)["map"] == pytest.approx(100 * np.mean(expected), abs=1e-4)


def test_an_image_alone_in_its_class_is_searched_but_asks_nothing() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.2]])
    labels = torch.tensor([0, 8, 0])
    assert retrieval_queries(labels).tolist() == [0, 2]
    assert retrieval_scores(features, labels) == {"rank1": 0, "rank5": 100, "map": 50}


def test_equal_features_rank_by_place() -> None:
    scores = retrieval_scores(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
    assert scores == pytest.approx(slow_retrieval(torch.ones(4, 3), torch.tensor([0, 1, 0, 1])))


def test_refuses_labels_without_a_pair() -> None:
    with pytest.raises(ValueError, match="retrieval needs a class with at least two images"):
        retrieval_scores(torch.eye(3), torch.arange(3))
