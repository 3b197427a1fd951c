"""How a classifier did, against counting by hand."""

from __future__ import annotations

from pipelines.evaluation.classification import Predictions

FAMILIES = {"Gala": "Apple", "Pink": "Apple", "Lime": "Citrus", "Kaki": "Other"}
PREDICTIONS = Predictions(
    labels=["Gala", "Gala", "Pink", "Lime", "Lemon"],
    ranked=[["Gala", "Pink"], ["Pink", "Gala"], ["Kaki", "Gala"], ["Lime", "Pink"], ["Lime", "Gala"]],
    coarse=["Apple", "Apple", "Apple", "Citrus", "Citrus"],
    families=FAMILIES,
)


def test_scores_count_every_image_that_of_an_unknown_class_too() -> None:
    assert PREDICTIONS.scores() == {"top1": 40.0, "top5": 60.0, "coarse": 80.0}


def test_coarse_classes_are_scored_by_themselves_the_worst_first() -> None:
    assert list(PREDICTIONS.by_coarse_class().items()) == [
        ("Apple", {"images": 3, "top1": 100 / 3, "top5": 200 / 3}),
        ("Citrus", {"images": 2, "top1": 50.0, "top5": 50.0}),
    ]


def test_the_report_has_the_confusions() -> None:
    confusions = PREDICTIONS.as_dict()["confusions"]
    assert confusions["within_coarse"] == 100 * 2 / 2  # Kaki has no test image: of what family it is, is not known
    assert {"truth": "Lemon", "predicted": "Lime", "count": 1, "of": 1, "sisters": True} in confusions["most_frequent"]
    lines = PREDICTIONS.text().splitlines()
    assert lines[:3] == [
        "  top-1                40.00 %",
        "  top-5                60.00 %",
        "  right coarse class   80.00 %",
    ]
    assert "  Apple              3    33.3    66.7" in lines
    assert "  Lemon taken for Lime: 1 of 1; both Citrus" in lines


def test_without_coarse_classes_they_are_left_out() -> None:
    plain = Predictions(PREDICTIONS.labels, PREDICTIONS.ranked, None, {})
    assert plain.scores() == {"top1": 40.0, "top5": 60.0}
    assert plain.by_coarse_class() == {}
    assert "coarse class" not in plain.text()
