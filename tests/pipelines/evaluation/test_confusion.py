"""Confusions by name, against counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipelines.evaluation.confusion import NamedConfusion, confusion_table, family_share, sister_confusions

FAMILY = {"Gala": "Apple", "Pink": "Apple", "Kaki": "Other", "Lime": "Citrus", "Lemon": "Citrus"}
LABELS = ["Gala", "Gala", "Gala", "Pink", "Pink", "Kaki", "Lime"]
PREDICTED = ["Pink", "Pink", "Gala", "Gala", "Pink", "Pink", "Lemon"]
COARSE = [FAMILY[name] for name in LABELS]


def test_confusions_bear_names_and_say_which_classes_are_sisters() -> None:
    assert sister_confusions(LABELS, PREDICTED, COARSE) == [
        NamedConfusion("Gala", "Pink", 2, 3, True),
        NamedConfusion("Kaki", "Pink", 1, 1, False),
        # No image is a lemon, so its family is not known.
        NamedConfusion("Lime", "Lemon", 1, 1, None),
        NamedConfusion("Pink", "Gala", 1, 2, True),
    ]
    assert [pair.sisters for pair in sister_confusions(LABELS, PREDICTED, None)] == [None] * 4
    assert len(sister_confusions(LABELS, PREDICTED, COARSE, most=1)) == 1


def test_the_share_within_families_counts_all_mistakes_whose_families_are_known() -> None:
    assert family_share(LABELS, PREDICTED, COARSE) == 75.0
    assert family_share(LABELS, PREDICTED, None) is None
    assert family_share(LABELS, LABELS, COARSE) is None


def test_counts_agree_with_counting_pair_by_pair() -> None:
    random = np.random.default_rng(0)
    labels, predicted = (random.choice(list(FAMILY), 300).tolist() for _ in range(2))
    coarse = [FAMILY[name] for name in labels]
    counted = Counter((t, p) for t, p in zip(labels, predicted, strict=True) if t != p)
    found = sister_confusions(labels, predicted, coarse, most=100)
    assert {(pair.truth, pair.predicted): pair.count for pair in found} == counted
    assert all(pair.sisters == (FAMILY[pair.truth] == FAMILY[pair.predicted]) for pair in found)
    assert [pair.count for pair in found] == sorted(counted.values(), reverse=True)
    within = sum(count for (t, p), count in counted.items() if FAMILY[t] == FAMILY[p])
    assert family_share(labels, predicted, coarse) == pytest.approx(100 * within / counted.total())


def test_the_table_is_text() -> None:
    assert confusion_table(LABELS, PREDICTED, COARSE, most=2) == (
        "5 of 7 images are taken for another class; 75 % of the mistakes stay within a coarse class\n"
        "  Gala taken for Pink: 2 of 3; both Apple\n"
        "  Kaki taken for Pink: 1 of 1"
    )
    assert confusion_table(["Gala"], ["Gala"], None) == "0 of 1 images are taken for another class"


@pytest.mark.parametrize(("predicted", "coarse"), [(["Gala"], None), (["Gala", "Pink"], ["Apple"])])
def test_lists_of_other_lengths_are_refused(predicted: list[str], coarse: list[str] | None) -> None:
    with pytest.raises(ValueError, match="every image has a label"):
        sister_confusions(["Gala", "Pink"], predicted, coarse)
