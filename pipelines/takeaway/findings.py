"""What frozen features say about images: scores beside those before training, confusions, nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import ray.data
import torch

from lodisc.encoder import Encoder
from lodisc.probes.ranking import nearest
from pipelines.data.examples import spread
from pipelines.data.samples import ImageStore
from pipelines.evaluation.confusion import NamedConfusion, family_share, sister_confusions
from pipelines.evaluation.evaluate import omissions
from pipelines.evaluation.evaluators import Ranked, Seen, score
from pipelines.evaluation.features import Features, extract

NEIGHBOURS = 6


@dataclass(frozen=True)
class Found:
    """A gallery image that is near a query.

    Attributes:
        data: encoded bytes.
        label: its fine class; None where it has none.
        similarity: cosine, to the query.
    """

    data: bytes
    label: str | None
    similarity: float


@dataclass(frozen=True)
class Neighbours:
    """A query and what is nearest to it, nearest first."""

    data: bytes
    label: str | None
    found: list[Found]


@dataclass(frozen=True)
class Example:
    """A confusion, an image that was confused, and the image of the other class that is nearest to it."""

    confusion: NamedConfusion
    taken: bytes
    taken_for: bytes


@dataclass(frozen=True)
class Mistakes:
    """What k-NN takes for what.

    Attributes:
        wrong: how many images are taken for another class.
        of: how many there are.
        within: share of the mistakes that stay within a coarse class, in percent; None where that is not known.
        examples: the most frequent confusions.
    """

    wrong: int
    of: int
    within: float | None
    examples: list[Example]


@dataclass(frozen=True)
class Findings:
    """What was found on a set of images.

    Attributes:
        images: how many were scored.
        gallery: how many others k-NN voted with; None where there were none.
        scores: of the trained encoder, as `SCORES` names them.
        before: of the encoder before training; None where it cannot be had.
        omissions: lines that say what the scores leave out, and why.
        mistakes: None where k-NN has no labels.
        neighbours: of some images.
    """

    images: int
    gallery: int | None
    scores: dict[str, float]
    before: dict[str, float] | None
    omissions: list[str]
    mistakes: Mistakes | None
    neighbours: list[Neighbours] = field(repr=False)


def find(
    trained: Encoder,
    untrained: Encoder | None,
    images: ray.data.Dataset,
    gallery: ray.data.Dataset | None,
    image_size: int,
    queries: int,
    seed: int,
) -> Findings:
    """Embed images with both encoders and say what comes of it. Ray must be running.

    Args:
        trained: the encoder to report.
        untrained: the same before training; None where it cannot be had.
        images: usable rows {bytes, path, label, coarse}, materialised.
        gallery: others. Without labels on both sides they are left out.
        image_size: side of the evaluation view in pixels.
        queries: how many images are shown with their neighbours.
        seed: draws these.
    """
    # Without labels a gallery says nothing, and is the larger part of the work.
    bare = gallery is not None and not is_labelled(gallery)
    sets = [images] if gallery is None or bare or not is_labelled(images) else [images, gallery]
    stores = [ImageStore.from_dataset(dataset) for dataset in sets]
    test, found_in = _pair(trained, sets, image_size)
    seen = Seen(test, found_in)
    voted = seen.ranked("knn/fine")
    return Findings(
        images=len(test.features),
        gallery=None if found_in is None else len(found_in.features),
        scores=score(seen),
        before=None if untrained is None else score(Seen(*_pair(untrained, sets, image_size))),
        omissions=omissions(test, Features(test.features[:0], []) if bare else found_in),
        mistakes=None if found_in is None or voted is None else _mistakes(test, found_in, voted, stores[0], stores[1]),
        neighbours=_neighbours(test, found_in or test, stores, queries, seed),
    )


def _pair(encoder: Encoder, sets: Sequence[ray.data.Dataset], image_size: int) -> tuple[Features, Features | None]:
    test, *others = [extract(encoder, dataset, image_size) for dataset in sets]
    return test, others[0] if others else None


def is_labelled(images: ray.data.Dataset) -> bool:
    """Whether every image has a fine label."""
    return all(row["label"] is not None for row in images.select_columns(["label"]).iter_rows())


def _mistakes(
    test: Features, gallery: Features, ranked: Ranked, images: ImageStore, gallery_images: ImageStore
) -> Mistakes:
    assert test.labels is not None and gallery.labels is not None
    predicted = [row[0] for row in ranked]
    examples = []
    for pair in sister_confusions(test.labels, predicted, test.coarse):
        taken = next(
            place
            for place, both in enumerate(zip(test.labels, predicted, strict=True))
            if both == (pair.truth, pair.predicted)
        )
        others = torch.tensor([place for place, label in enumerate(gallery.labels) if label == pair.predicted])
        best, _ = nearest(test.features[taken : taken + 1], gallery.features[others], 1)
        taken_for = int(others[best[0, 0]])
        examples.append(Example(pair, _read(images, [taken])[0], _read(gallery_images, [taken_for])[0]))
    wrong = sum(truth != found for truth, found in zip(test.labels, predicted, strict=True))
    return Mistakes(wrong, len(predicted), family_share(test.labels, predicted, test.coarse), examples)


def _neighbours(
    test: Features, gallery: Features, stores: Sequence[ImageStore], count: int, seed: int
) -> list[Neighbours]:
    """Return some test images with their nearest neighbours in the gallery, which may be the test images."""
    alone = gallery is test
    chosen = spread(test.labels or [None] * len(test.features), seed)[:count]
    k = min(NEIGHBOURS, len(gallery.features) - alone)
    if k == 0:
        return []
    queries = torch.tensor(chosen)
    found, similarity = nearest(test.features[queries], gallery.features, k, queries if alone else None)
    pictures = _read(stores[-1], found.flatten().tolist())
    rows = []
    for row, (data, place) in enumerate(zip(_read(stores[0], chosen), chosen, strict=True)):
        neighbours = [
            Found(pictures[row * k + i], _label(gallery, int(found[row, i])), float(similarity[row, i]))
            for i in range(k)
        ]
        rows.append(Neighbours(data, _label(test, place), neighbours))
    return rows


def _label(features: Features, place: int) -> str | None:
    return features.labels[place] if features.labels else None


def _read(store: ImageStore, places: list[int]) -> list[bytes]:
    return list(store.read(np.array(places)))
