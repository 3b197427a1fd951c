"""The scores of an encoder's features, a row each: whoever prints, draws or searches by them reads this table.

It is to be had without torch: a row names its function, which is imported when a score is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipelines.evaluation.evaluators import Seen

EVALUATORS = "pipelines.evaluation.evaluators:"


@dataclass(frozen=True)
class Score:
    """A number that says what frozen features are good for.

    Attributes:
        name: in MLflow and in files, with `eval/` before it while training and `test/` after it.
        title: for people.
        mode: whether more or less of it is better.
        function: name of the function that gives it of a `Seen`, or None where that does not allow it.
        probe: the part of an evaluation that it belongs to, see `--probe`.
        unit: "%", or nothing.
        needs: the labels that it needs; None for a score without labels.
        tunable: whether a sweep may choose by it.
        distorted_by: prefix of the fields that change the score of one and the same encoder, so that trials which
            differ in them cannot be compared by it.
    """

    name: str
    title: str
    mode: Literal["max", "min"]
    function: str
    probe: str
    unit: str = ""
    needs: Literal["fine", "coarse"] | None = None
    tunable: bool = True
    distorted_by: str | None = None

    @property
    def metric(self) -> str:
        """The name of its curve while training."""
        return f"eval/{self.name}"

    def of(self, seen: Seen) -> float | None:
        """Take the score; None where it cannot be had."""
        value: float | None = resolve_name(EVALUATORS + self.function)(seen)
        return value

    def text(self, value: float, sign: str = "") -> str:
        """Return a value with its unit, to one decimal in percent, else to two."""
        return f"{value:{sign}.{1 if self.unit else 2}f} {self.unit}".strip()


SCORES = {
    score.name: score
    for score in (
        Score("knn/fine", "k-NN fine", "max", "knn_fine", "knn", "%", "fine"),
        Score("knn/coarse", "k-NN coarse", "max", "knn_coarse", "knn", "%", "coarse"),
        Score("retrieval/rank1", "Rank-1", "max", "rank1", "retrieval", "%", "fine"),
        Score("retrieval/rank5", "Rank-5", "max", "rank5", "retrieval", "%", "fine"),
        Score("retrieval/map", "mAP", "max", "mean_average_precision", "retrieval", "%", "fine"),
        Score("linear/top1", "linear top-1", "max", "linear_top1", "linear", "%", "fine", tunable=False),
        Score("linear/top5", "linear top-5", "max", "linear_top5", "linear", "%", "fine", tunable=False),
        # At most the number of features, and so of another size for another architecture (arXiv 2210.02885).
        Score("rankme", "RankMe", "max", "effective_rank", "geometry", distorted_by="encoder.arch"),
        # An encoder that tells any two views apart is perfectly uniform, a collapsed one aligns perfectly (2005.10242).
        Score("uniformity", "uniformity", "min", "uniformity_of", "geometry", tunable=False),
        Score("alignment", "alignment", "min", "alignment_of", "geometry", tunable=False),
        # The alignment is that of an image with a random view of it.
        Score("align_uniform", "alignment + uniformity", "min", "align_uniform", "geometry", distorted_by="views."),
    )
}
PROBES = tuple(dict.fromkeys(score.probe for score in SCORES.values()))
NEED_GALLERY = ("knn", "linear")
