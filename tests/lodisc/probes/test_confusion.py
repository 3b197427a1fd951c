"""Confusions, against counting by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lodisc.probes.confusion import Confusion, confusions


def test_confusions_are_counted_and_the_most_frequent_comes_first() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    predicted = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 2])
    assert confusions(truth, predicted) == [
        Confusion(0, 1, 2, 3),
        Confusion(2, 1, 2, 4),
        Confusion(1, 0, 1, 2),
        Confusion(2, 0, 1, 4),
    ]


def test_confusions_agree_with_counting_pair_by_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(0, 7, (2, 200), generator=generator)
    counted = Counter((t, p) for t, p in zip(truth.tolist(), predicted.tolist(), strict=True) if t != p)
    assert {(each.truth, each.predicted): each.count for each in confusions(truth, predicted)} == counted
    assert all(each.of == truth.tolist().count(each.truth) for each in confusions(truth, predicted))


def test_no_mistake_is_no_confusion() -> None:
    assert confusions(torch.tensor([1, 0]), torch.tensor([1, 0])) == []


@pytest.mark.parametrize("predicted", [torch.tensor([0]), torch.tensor([0.0, 1.0]), torch.tensor([[0, 1]])])
def test_other_shapes_and_types_are_refused(predicted: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="int64"):
        confusions(torch.tensor([0, 1]), predicted)
