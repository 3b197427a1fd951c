from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lodisc.probes import linear
from lodisc.probes.held_out import held_out_fifth
from lodisc.probes.linear import fit_linear


def blobs(images: int, seed: int, classes: int = 12, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(99))
    scales = torch.logspace(-2, 2, 16)
    return scales * (centres[labels] + noise * torch.randn(images, 16, generator=generator)), labels


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, seed: int = 0
) -> dict[str, float]:
    """Return top-1 and top-5 accuracy of the probe in percent."""
    hits = fit_linear(train, train_labels, seed).rank(test) == test_labels.unsqueeze(1)
    return {"top1": 100 * hits[:, 0].double().mean().item(), "top5": 100 * hits.any(dim=1).double().mean().item()}


def test_one_fit_minimises_the_penalised_cross_entropy() -> None:
    """Where the gradient of mean cross-entropy + l2 / 2 |weight|^2 vanishes."""
    train, labels = blobs(300, seed=0)
    x = torch.tensor(StandardScaler().fit_transform(train), dtype=torch.float64)
    l2, model = 1e-2, LogisticRegression(max_iter=1000, tol=1e-10)
    linear._fit(model, x, labels, l2)
    weight = torch.tensor(model.coef_, requires_grad=True)
    logits = x @ weight.T + torch.tensor(model.intercept_)
    (torch.nn.functional.cross_entropy(logits, labels) + l2 / 2 * weight.square().sum()).backward()
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), atol=1e-5, rtol=0)


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
    assert hits[:, 0].double().mean() > 0.3
    # By the class numbers in their order, as another numbering of the same classes gives.
    again = fit_linear(train, train_labels, seed=4).rank(test)
    assert torch.equal(numbers[again], ranked)
    with pytest.raises(ValueError, match="the classifier has 16 features an image, features 3"):
        fit_linear(train, train_labels).rank(test[:, :3])


def test_features_of_pure_noise_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(200, 8, generator=generator), torch.randn(1000, 8, generator=generator)
    scores = linear_probe(train, torch.arange(200) % 10, test, torch.arange(1000) % 10)
    assert scores["top1"] == pytest.approx(10, abs=4)
    assert scores["top5"] == pytest.approx(50, abs=8)


def test_depends_on_nothing_but_its_arguments() -> None:
    train, train_labels = blobs(200, seed=0)
    test, test_labels = blobs(100, seed=1)
    first = linear_probe(train, train_labels, test, test_labels, seed=4)
    torch.manual_seed(123)
    with torch.no_grad():
        assert linear_probe(train, train_labels, test, test_labels, seed=4) == first


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


def test_two_classes_are_ranked_and_one_is_all_there_is() -> None:
    train, labels = blobs(60, seed=0, classes=2, noise=0.1)
    ranked = fit_linear(train, labels + 5).rank(train)
    assert torch.equal(ranked[:, 0], labels + 5) and torch.equal(ranked.sort().values, torch.tensor([[5, 6]] * 60))
    assert fit_linear(train, torch.full((60,), 3)).rank(train).tolist() == [[3]] * 60


def test_refuses_bad_input() -> None:
    x, y = torch.eye(4), torch.arange(4)
    with pytest.raises(ValueError, match="needs a class with at least two images"):
        linear_probe(x, y, x, y)
    with pytest.raises(ValueError, match="the classifier has 4 features an image, features 2"):
        linear_probe(x, y % 2, x[:, :2], y)
