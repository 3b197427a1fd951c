"""What may be tuned on, and why the rest may not."""

from __future__ import annotations

import pytest

from tuning.objective import find_objective

SEARCHED = ("model.temperature", "model.mask_ratio", "model.local_weight")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("loss", "a lower one is not a better encoder"),
        ("loss/local", "a lower one is not a better encoder"),
        ("contrastive/top1", "how easily a batch is told apart depends on"),
        ("alignment", "a collapsed encoder aligns perfectly"),
        ("eval/uniformity", "perfectly uniform"),
        ("linear/top1", "is not taken while training"),
        ("accuracy", "it is no score of an encoder"),
    ],
)
def test_what_says_nothing_about_the_encoder_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"objective: {name} cannot be tuned on: .*{reason}") as refusal:
        find_objective(name, SEARCHED, held_out=True)
    choice = "knn/fine, knn/coarse, retrieval/rank1, retrieval/rank5, retrieval/map, rankme, align_uniform"
    assert str(refusal.value).endswith(f"Choose one of {choice}")


@pytest.mark.parametrize("name", ["knn/fine", "knn/coarse", "retrieval/rank1", "retrieval/rank5", "retrieval/map"])
def test_scores_by_labels_need_images_that_no_trial_trains_on(name: str) -> None:
    assert find_objective(name, SEARCHED, held_out=True).mode == "max"
    with pytest.raises(ValueError, match=r"data\.eval_images, or tune on rankme or align_uniform"):
        find_objective(name, SEARCHED, held_out=False)


def test_scores_without_labels_need_neither() -> None:
    assert find_objective("rankme", SEARCHED, held_out=False).mode == "max"
    assert find_objective("align_uniform", SEARCHED, held_out=False).mode == "min"


@pytest.mark.parametrize(("name", "field"), [("rankme", "encoder.arch"), ("align_uniform", "views.crop_scale")])
def test_fields_that_change_the_score_itself_cannot_be_searched_for_it(name: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be compared between trials that differ in {field}"):
        find_objective(name, (*SEARCHED, field), held_out=False)
    assert find_objective("knn/fine", (*SEARCHED, field), held_out=True).name == "knn/fine"
