"""What takes each score: functions of the features that an encoder gave, and of what their labels say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from lodisc.probes.geometry import alignment, rankme, uniformity
from lodisc.probes.knn import knn_predictions
from lodisc.probes.retrieval import retrieval_scores
from pipelines.evaluation.features import Features
from pipelines.evaluation.scores import PROBES, SCORES

# Of each image, the classes that it may be of, best first.
Ranked = list[list[str]]


class Seen:
    """Images as an encoder sees them, to take scores of. What several scores need is computed once.

    Args:
        test: the images to score on.
        gallery: other images, for k-NN to vote with and the linear probe to learn from.
        other_view: (N, D) features of another view of the test images, for the alignment.
    """

    def __init__(self, test: Features, gallery: Features | None = None, other_view: torch.Tensor | None = None) -> None:
        self.test, self.gallery, self.other_view = test, gallery, other_view
        self._ranked: dict[str, Ranked | None] = {}

    def ranked(self, by: str) -> Ranked | None:
        """Return the classes that the gallery's labels give each test image, where both have labels.

        Args:
            by: "knn/fine" or "knn/coarse", which give one class; or "linear", which gives up to five, best first.
        """
        if by not in self._ranked:
            self._ranked[by] = self._linear() if by == "linear" else self._knn(by)
        return self._ranked[by]

    @cached_property
    def retrieval(self) -> Mapping[str, float]:
        """The scores of retrieval among the test images; none where no two are of a class."""
        labels = self.test.labels
        if labels is None or len(set(labels)) == len(labels):
            return {}
        return retrieval_scores(self.test.features, numbered(labels)[1])

    @cached_property
    def alignment(self) -> float | None:
        return None if self.other_view is None else alignment(self.test.features, self.other_view)

    @cached_property
    def uniformity(self) -> float | None:
        return uniformity(self.test.features) if len(self.test.features) > 1 else None

    def _knn(self, by: str) -> Ranked | None:
        if self.gallery is None:
            return None
        known, asked = {
            "knn/fine": (self.gallery.labels, self.test.labels),
            "knn/coarse": (self.gallery.coarse, self.test.coarse),
        }[by]
        if known is None or asked is None:
            return None
        names, numbers = numbered(known)
        voted = knn_predictions(self.gallery.features, numbers, self.test.features)
        return [[names[number]] for number in voted.tolist()]

    def _linear(self) -> Ranked | None:
        if self.gallery is None or self.gallery.labels is None or self.test.labels is None:
            return None
        names, numbers = numbered(self.gallery.labels)
        if len(names) == len(numbers):  # The strength of its penalty is chosen on a second image of some class.
            return None
        from lodisc.probes.linear import fit_linear  # scikit-learn takes a second that no training waits for

        ranked = fit_linear(self.gallery.features, numbers).rank(self.test.features)
        return [[names[number] for number in row] for row in ranked.tolist()]


def score(seen: Seen, probes: Sequence[str] = PROBES) -> dict[str, float]:
    """Return by name what the images and their labels allow of the scores that belong to `probes`.

    Raises:
        ValueError: an unknown probe, or features that are not finite.
    """
    if unknown := set(probes) - set(PROBES):
        raise ValueError(f"probes: unknown {', '.join(sorted(unknown))}; there are {', '.join(PROBES)}")
    values = {name: row.of(seen) for name, row in SCORES.items() if row.probe in probes}
    return {name: value for name, value in values.items() if value is not None}


def numbered(labels: list[str]) -> tuple[list[str], torch.Tensor]:
    """Return the classes of labels (N), sorted, and of each label the number (N,) int64 of its class."""
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    return names, torch.tensor([numbers[label] for label in labels])


def knn_fine(seen: Seen) -> float | None:
    return _hits(seen.test.labels, seen.ranked("knn/fine"))


def knn_coarse(seen: Seen) -> float | None:
    return _hits(seen.test.coarse, seen.ranked("knn/coarse"))


def linear_top1(seen: Seen) -> float | None:
    return _hits(seen.test.labels, seen.ranked("linear"), among=1)


def linear_top5(seen: Seen) -> float | None:
    return _hits(seen.test.labels, seen.ranked("linear"), among=5)


def rank1(seen: Seen) -> float | None:
    return seen.retrieval.get("rank1")


def rank5(seen: Seen) -> float | None:
    return seen.retrieval.get("rank5")


def mean_average_precision(seen: Seen) -> float | None:
    return seen.retrieval.get("map")


def effective_rank(seen: Seen) -> float:
    return rankme(seen.test.features)


def uniformity_of(seen: Seen) -> float | None:
    return seen.uniformity


def alignment_of(seen: Seen) -> float | None:
    return seen.alignment


def align_uniform(seen: Seen) -> float | None:
    """The sum of both (Wang and Isola 2020)."""
    return None if seen.alignment is None or seen.uniformity is None else seen.alignment + seen.uniformity


def _hits(truth: list[str] | None, ranked: Ranked | None, among: int = 1) -> float | None:
    """Return of how many images the true class is among the first that were ranked, in percent."""
    if truth is None or ranked is None:
        return None
    return 100 * sum(label in row[:among] for label, row in zip(truth, ranked, strict=True)) / len(ranked)
