from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lodisc.probes.knn import knn_accuracy


def blobs(images: int, classes: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    return centres[labels] + noise * torch.randn(images, 8, generator=generator), labels


def slow_knn(gallery: Tensor, gallery_labels: Tensor, queries: Tensor, labels: Tensor, k: int, t: float) -> float:
    correct = 0
    for query, label in zip(queries.double(), labels.tolist(), strict=True):
        cosine = [float(cosine_similarity(query, row, dim=0)) for row in gallery.double()]
        nearest = sorted(range(len(cosine)), key=lambda i: (-round(cosine[i], 7), i))[:k]
        votes: dict[int, float] = defaultdict(float)
        for i in nearest:
            votes[int(gallery_labels[i])] += math.exp(cosine[i] / t)
        correct += min(votes, key=lambda c: (-round(votes[c], 6), c)) == label
    return 100 * correct / len(queries)


@pytest.mark.parametrize("k", [1, 5, 20, 500])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("max_pairs", [1, 200, 2**22])
def test_equals_plain_voting(k: int, temperature: float, max_pairs: int) -> None:
    gallery, gallery_labels = blobs(90, 6, seed=0)
    queries, labels = blobs(40, 6, seed=1)
    gallery[50:60] = gallery[:10]

    accuracy = knn_accuracy(gallery, gallery_labels, queries, labels, k, temperature, max_pairs)

    assert accuracy == pytest.approx(slow_knn(gallery, gallery_labels, queries, labels, k, temperature))


def test_ties_go_to_the_first_neighbour_and_the_lowest_class() -> None:
    query, same = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [3.0, 0.0]])
    labels = torch.tensor([7, 4])
    assert knn_accuracy(same, labels, query, torch.tensor([7]), k=1) == 100
    assert knn_accuracy(same, labels, query, torch.tensor([4]), k=2) == 100


def test_a_class_that_the_gallery_lacks_is_wrong() -> None:
    gallery, labels = torch.eye(2), torch.tensor([0, 5])
    assert knn_accuracy(gallery, labels, torch.eye(2), torch.tensor([0, 9]), k=1) == 50


def test_accepts_double_and_low_precision() -> None:
    gallery, gallery_labels = blobs(60, 3, seed=0, noise=0.1)
    queries, labels = blobs(20, 3, seed=1, noise=0.1)
    for dtype in (torch.float64, torch.bfloat16):
        assert knn_accuracy(gallery.to(dtype), gallery_labels, queries.to(dtype), labels) == 100


def test_refuses_bad_input() -> None:
    x, y = torch.eye(3), torch.arange(3)
    bad = x.clone()
    bad[1, 2] = float("nan")
    with pytest.raises(ValueError, match="queries hold NaN or infinity, first in row 1"):
        knn_accuracy(x, y, bad, y)
    with pytest.raises(ValueError, match=r"gallery must be floating point \(N, D\).*float32 \(0, 3\)"):
        knn_accuracy(x[:0], y[:0], x, y)
    with pytest.raises(ValueError, match=r"query_labels must be int64 \(3,\), got int64 \(2,\)"):
        knn_accuracy(x, y, x, y[:2])
    with pytest.raises(ValueError, match=r"gallery_labels must be >= 0, got -1 in row 0"):
        knn_accuracy(x, y - 1, x, y)
    with pytest.raises(ValueError, match="gallery has 3 features an image, queries have 2"):
        knn_accuracy(x, y, x[:, :2], y)
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn_accuracy(x, y, x, y, k=0)
