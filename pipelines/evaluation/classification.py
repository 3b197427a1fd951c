"""How a classifier does on test images: accuracies, by coarse class too, and what it confuses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.evaluation.confusion import confusion_summary, confusion_table


@dataclass(frozen=True)
class Predictions:
    """The classes that images have and may be of; row i, label i and coarse class i belong together.

    Attributes:
        labels: the fine class of each image.
        ranked: of each image up to five fine classes, best first.
        coarse: the coarse class of each image; None where there are none.
        families: the coarse class of each fine class that may be predicted; empty where there are none.
    """

    labels: list[str]
    ranked: list[list[str]]
    coarse: list[str] | None
    families: Mapping[str, str]

    @property
    def best(self) -> list[str]:
        return [ranked[0] for ranked in self.ranked]

    def scores(self) -> dict[str, float]:
        """Return top1 and top5 in percent, and coarse, how often the best class is of the right coarse class."""
        everything = _accuracy(list(zip(self.labels, self.ranked, strict=True)))
        if self.coarse is None or not self.families:
            return everything
        right = sum(self.families.get(best) == coarse for best, coarse in zip(self.best, self.coarse, strict=True))
        return {**everything, "coarse": 100 * right / len(self.labels)}

    def by_coarse_class(self) -> dict[str, dict[str, float]]:
        """Return {images, top1, top5} of each coarse class, the worst first; empty where there are none."""
        groups = defaultdict(list)
        for coarse, label, ranked in zip(self.coarse or (), self.labels, self.ranked, strict=self.coarse is not None):
            groups[coarse].append((label, ranked))
        scored = {name: {"images": len(rows), **_accuracy(rows)} for name, rows in groups.items()}
        return dict(sorted(scored.items(), key=lambda item: (item[1]["top1"], item[0])))

    def as_dict(self) -> dict[str, Any]:
        """Return all of this as plain values."""
        confusions = confusion_summary(self.labels, self.best, self.coarse)
        return {"scores": self.scores(), "by_coarse_class": self.by_coarse_class(), "confusions": confusions}

    def text(self) -> str:
        """Return all of this as lines of text."""
        names = {"top1": "top-1", "top5": "top-5", "coarse": "right coarse class"}
        lines = [f"  {names[name]:18}  {value:6.2f} %" for name, value in self.scores().items()]
        groups = self.by_coarse_class()
        if groups:
            width = max(map(len, ("coarse class", *groups)))
            lines += ["", f"  {'coarse class':{width}}  images   top-1   top-5"]
        for name, row in groups.items():
            lines.append(f"  {name:{width}}  {row['images']:6}  {row['top1']:6.1f}  {row['top5']:6.1f}")
        return "\n".join([*lines, "", confusion_table(self.labels, self.best, self.coarse)])


def _accuracy(rows: list[tuple[str, list[str]]]) -> dict[str, float]:
    """Return top-1 and top-5 in percent of images (label, ranked classes)."""
    top1 = sum(label == ranked[0] for label, ranked in rows)
    top5 = sum(label in ranked for label, ranked in rows)
    return {"top1": 100 * top1 / len(rows), "top5": 100 * top5 / len(rows)}
