"""Which classes are taken for which others, by name, and how many mistakes stay within a family of classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class NamedConfusion:
    """Images of one class that were taken for another one.

    Attributes:
        truth: the class that they are of.
        predicted: the class that they were taken for.
        count: how many.
        of: how many images the true class has.
        sisters: whether both are of one coarse class; None where that is not known.
    """

    truth: str
    predicted: str
    count: int
    of: int
    sisters: bool | None


def sister_confusions(
    labels: list[str], predicted: list[str], coarse: list[str] | None, most: int = 10
) -> list[NamedConfusion]:
    """Return the most frequent confusions of classes.

    Args:
        labels: the fine class of each of N images.
        predicted: the fine class that each was taken for.
        coarse: the coarse class of each, which says what is a sister of what; None where there is none. The family of a
            class that no image has, and that is only ever predicted, is not known.
        most: return at most so many.

    Returns:
        The most frequent first; of equally frequent ones the larger share of its class, then by name.

    Raises:
        ValueError: the lists differ in length.
    """
    families, sizes = _families(labels, predicted, coarse), Counter(labels)
    wrong = Counter(pair for pair in zip(labels, predicted, strict=True) if pair[0] != pair[1])
    found = [
        NamedConfusion(truth, taken_for, count, sizes[truth], _sisters(families, truth, taken_for))
        for (truth, taken_for), count in wrong.items()
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.of, pair.truth, pair.predicted))[:most]


def family_share(labels: list[str], predicted: list[str], coarse: list[str] | None) -> float | None:
    """Return the share of the mistakes that were for a sister class, in percent, of those where that is known.

    Args:
        labels, predicted, coarse: as for `sister_confusions`.

    Returns:
        None where no mistake is known to be within or across families.

    Raises:
        ValueError: the lists differ in length.
    """
    families = _families(labels, predicted, coarse)
    mistakes = [(truth, taken_for) for truth, taken_for in zip(labels, predicted, strict=True) if truth != taken_for]
    known = [sisters for pair in mistakes if (sisters := _sisters(families, *pair)) is not None]
    return 100 * sum(known) / len(known) if known else None


def confusion_table(labels: list[str], predicted: list[str], coarse: list[str] | None, most: int = 10) -> str:
    """Return the most frequent confusions as lines of text, after one that says how many mistakes there are.

    Args:
        labels, predicted, coarse, most: as for `sister_confusions`.

    Raises:
        ValueError: the lists differ in length.
    """
    families, share = _families(labels, predicted, coarse), family_share(labels, predicted, coarse)
    wrong = sum(truth != taken_for for truth, taken_for in zip(labels, predicted, strict=True))
    within = "" if share is None else f"; {share:.0f} % of the mistakes stay within a coarse class"
    lines = [f"{wrong} of {len(labels)} images are taken for another class{within}"]
    for pair in sister_confusions(labels, predicted, coarse, most):
        both = f"; both {' and '.join(sorted(families[pair.truth] & families[pair.predicted]))}" if pair.sisters else ""
        lines.append(f"  {pair.truth} taken for {pair.predicted}: {pair.count} of {pair.of}{both}")
    return "\n".join(lines)


def confusion_summary(labels: list[str], predicted: list[str], coarse: list[str] | None) -> dict[str, Any]:
    """Return the confusions as plain values.

    Args:
        labels, predicted, coarse: as for `sister_confusions`.

    Returns:
        `within_coarse`, what `family_share` gives; and `most_frequent`, what `sister_confusions` gives, as dicts.

    Raises:
        ValueError: the lists differ in length.
    """
    pairs = [asdict(pair) for pair in sister_confusions(labels, predicted, coarse)]
    return {"within_coarse": family_share(labels, predicted, coarse), "most_frequent": pairs}


def _families(labels: list[str], predicted: list[str], coarse: list[str] | None) -> dict[str, set[str]]:
    """Return the coarse classes of each fine class: one in a hierarchy, but nothing forbids a class to be in two."""
    if len(labels) != len(predicted) or (coarse is not None and len(coarse) != len(labels)):
        of_coarse = "" if coarse is None else f" and {len(coarse)} coarse classes"
        raise ValueError(f"every image has a label and a prediction, got {len(labels)} and {len(predicted)}{of_coarse}")
    families = defaultdict(set)
    for label, family in zip(labels, coarse or (), strict=coarse is not None):
        families[label].add(family)
    return families


def _sisters(families: dict[str, set[str]], truth: str, predicted: str) -> bool | None:
    if not (families.get(truth) and families.get(predicted)):
        return None
    return bool(families[truth] & families[predicted])
