from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lodisc.probes import linear
from lodisc.probes.linear import fit_linear, held_out_fifth, linear_probe


def blobs(images: int, seed: int, classes: int = 12, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(99))
    scales = torch.logspace(-2, 2, 16)
    return scales * (centres[labels] + noise * torch.randn(images, 16, generator=generator)), labels


def test_one_fit_is_sklearns_logistic_regression() -> None:
    train, labels = blobs(300, seed=0)
    x = torch.tensor(StandardScaler().fit_transform(train), dtype=torch.float32)
    l2 = 1e-2
    reference = LogisticRegression(C=1 / (l2 * len(x)), max_iter=1000, tol=1e-8).fit(x, labels)

    classifier = linear._start(x, 12)
    linear._fit(classifier, x, labels, l2)

    expected = torch.tensor(reference.coef_, dtype=torch.float32)
    torch.testing.assert_close(classifier.weight.detach(), expected, atol=2e-3, rtol=0)


def test_is_as_accurate_as_the_best_of_sklearns_grid() -> None:
    train, train_labels = blobs(360, seed=0)
    test, test_labels = blobs(600, seed=1)
    scaler = StandardScaler().fit(train)
    best = max(
        LogisticRegression(C=1 / (l2 * len(train)), max_iter=500)
        .fit(scaler.transform(train), train_labels)
        .score(scaler.transform(test), test_labels)
        for l2 in linear.L2_STRENGTHS
    )
    scores = linear_probe(train, train_labels, test, test_labels)
    assert scores["top1"] == pytest.approx(100 * best, abs=2)
    assert scores["top1"] < scores["top5"] <= 100


def test_the_fitted_classifier_ranks_classes_best_first() -> None:
    train, train_labels = blobs(200, seed=0)
    test, test_labels = blobs(100, seed=1)
    numbers = torch.arange(12).flip(0) * 3
    ranked = fit_linear(train, numbers[train_labels], seed=4).rank(test)
    assert ranked.shape == (100, 5) and all(len(set(row)) == 5 for row in ranked.tolist())
    hits = ranked == numbers[test_labels].unsqueeze(1)
    assert linear_probe(train, numbers[train_labels], test, numbers[test_labels], seed=4) == {
        "top1": 100 * hits[:, 0].double().mean().item(),
        "top5": 100 * hits.any(dim=1).double().mean().item(),
    }
    with pytest.raises(ValueError, match="the classifier has 16 features an image, features 3"):
        fit_linear(train, train_labels).rank(test[:, :3])


def test_features_of_pure_noise_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(200, 8, generator=generator), torch.randn(1000, 8, generator=generator)
    scores = linear_probe(train, torch.arange(200) % 10, test, torch.arange(1000) % 10)
    assert scores["top1"] == pytest.approx(10, abs=4)
    assert scores["top5"] == pytest.approx(50, abs=8)


def test_depends_on_nothing_but_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    train, train_labels = blobs(200, seed=0)
    test, test_labels = blobs(100, seed=1)
    first = linear_probe(train, train_labels, test, test_labels, seed=4)
    torch.manual_seed(123)
    with torch.no_grad():
        assert linear_probe(train, train_labels, test, test_labels, seed=4) == first
    monkeypatch.setattr(linear, "CHUNK", 33)
    in_chunks = linear_probe(train.double(), train_labels, test.double(), test_labels, seed=4)
    assert in_chunks == pytest.approx(first, abs=2)


def test_class_numbers_may_have_gaps_and_the_test_set_other_classes() -> None:
    train, train_labels = blobs(60, seed=0, classes=3, noise=0.1)
    test, test_labels = blobs(60, seed=1, classes=3, noise=0.1)
    numbers = torch.tensor([3, 50, 7])
    unseen = numbers[test_labels].clone()
    unseen[:15] = 1000
    assert linear_probe(train, numbers[train_labels], test, unseen) == {"top1": 75, "top5": 75}


def test_constant_features_do_no_harm() -> None:
    train, train_labels = blobs(60, seed=0, classes=3, noise=0.1)
    test, test_labels = blobs(60, seed=1, classes=3, noise=0.1)
    train[:, 0], test[:, 0] = 0.1, 0.1
    assert linear_probe(train, train_labels, test, test_labels)["top1"] == 100


@pytest.mark.parametrize("sizes", [[1, 2, 4, 5, 9, 10, 23]])
def test_held_out_is_a_fifth_of_each_class(sizes: list[int]) -> None:
    targets = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    mask = held_out_fifth(targets, seed=0)
    assert targets[mask].bincount(minlength=len(sizes)).tolist() == [0, 1, 1, 1, 1, 2, 4]
    assert not torch.equal(mask, held_out_fifth(targets, seed=1))


def test_leaves_torchs_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    train, labels = blobs(60, seed=0, classes=3)
    linear_probe(train, labels, train, labels)
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="two images"):
        linear_probe(train[:3], labels[:3], train, labels)
    assert torch.get_num_threads() == before


def test_refuses_bad_input() -> None:
    x, y = torch.eye(4), torch.arange(4)
    with pytest.raises(ValueError, match="needs a class with at least two images"):
        linear_probe(x, y, x, y)
    with pytest.raises(ValueError, match="train_features has 4 features an image, test_features 2"):
        linear_probe(x, y, x[:, :2], y)
