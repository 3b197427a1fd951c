"""What a sweep looks for: a score of frozen features, which means the same whatever was searched."""

from __future__ import annotations

from collections.abc import Collection

from pipelines.evaluation.scores import SCORES, Score

REASONS = {
    "loss": "the contrastive loss is scaled by model.temperature, model.local_weight and the batch itself: a lower one "
    "is not a better encoder",
    "contrastive": "how easily a batch is told apart depends on model.temperature, the views and the batch itself",
    "alignment": "a collapsed encoder aligns perfectly",
    "linear": "the linear probe, which fits a classifier each time, is not taken while training",
    "uniformity": "an encoder that tells any two views apart is perfectly uniform",
}


def find_objective(name: str, searched: Collection[str], held_out: bool) -> Score:
    """Return the objective of a name.

    Args:
        name: of the objective.
        searched: dotted names of the searched fields.
        held_out: whether there are images to score on.

    Raises:
        ValueError: it says nothing about the encoder, or nothing that could be compared over the searched fields, or
            needs held-out images where there are none.
    """
    objectives = [score.name for score in SCORES.values() if score.tunable]
    if name not in objectives:
        reason = REASONS.get(name.removeprefix("eval/").split("/")[0], "it is no score of an encoder")
        raise ValueError(f"objective: {name} cannot be tuned on: {reason}. Choose one of {', '.join(objectives)}")
    objective = SCORES[name]
    distorting = [field for field in searched if objective.distorted_by and field.startswith(objective.distorted_by)]
    if distorting:
        raise ValueError(
            f"objective: {name} cannot be compared between trials that differ in {', '.join(distorting)}, as these "
            "change the score of one and the same encoder; tune on k-NN or retrieval, or do not search these fields"
        )
    if objective.needs and not held_out:
        raise ValueError(
            f"objective: {name} needs labelled images that no trial trains on: name them in data.eval_images, or tune "
            "on rankme or align_uniform, which need no labels"
        )
    return objective
