"""What a sweep looks for: a score of frozen features, which means the same whatever was searched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Objective:
    """A score that trials can be compared by.

    Attributes:
        name: as `pipelines.evaluation.evaluate.score` names it.
        mode: whether more or less of it is better.
        needs: "fine" or "coarse" labels of held-out images; None for a score without labels.
        distorted_by: prefix of the fields that change the score itself, and so cannot be searched for it.
    """

    name: str
    mode: Literal["max", "min"]
    needs: Literal["fine", "coarse"] | None = None
    distorted_by: str | None = None

    @property
    def metric(self) -> str:
        """The name of its curve in MLflow and in what a run reports."""
        return f"eval/{self.name}"


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("knn/fine", "max", "fine"),
        Objective("knn/coarse", "max", "coarse"),
        Objective("retrieval/rank1", "max", "fine"),
        Objective("retrieval/rank5", "max", "fine"),
        Objective("retrieval/map", "max", "fine"),
        # At most the number of features, and so of another size for another architecture (arXiv 2210.02885).
        Objective("rankme", "max", distorted_by="encoder.arch"),
        # The alignment is that of an image with a random view of it (arXiv 2005.10242).
        Objective("align_uniform", "min", distorted_by="views."),
    )
}
REASONS = {
    "loss": "the contrastive loss is scaled by model.temperature, model.local_weight and the batch itself: a lower one "
    "is not a better encoder",
    "contrastive": "how easily a batch is told apart depends on model.temperature, the views and the batch itself",
    "alignment": "a collapsed encoder aligns perfectly",
    "uniformity": "an encoder that tells any two views apart is perfectly uniform",
}


def find_objective(name: str, searched: Collection[str], held_out: bool) -> Objective:
    """Return the objective of a name.

    Args:
        name: of the objective.
        searched: dotted names of the searched fields.
        held_out: whether there are images to score on.

    Raises:
        ValueError: it says nothing about the encoder, or nothing that could be compared over the searched fields, or
            needs held-out images where there are none.
    """
    if name not in OBJECTIVES:
        reason = REASONS.get(name.removeprefix("eval/").split("/")[0], "it is no score of an encoder")
        raise ValueError(f"objective: {name} cannot be tuned on: {reason}. Choose one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
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
