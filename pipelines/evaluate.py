"""Score a pretrained encoder on labelled images, as the paper does and by label-free measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lodisc.probes.geometry import alignment, rankme, uniformity
from lodisc.probes.knn import knn_accuracy
from lodisc.probes.linear import linear_probe
from lodisc.probes.retrieval import retrieval_queries, retrieval_scores
from pipelines.checkpoint import find_checkpoint, load_encoder
from pipelines.features import Features, extract
from pipelines.journal import now_ms
from pipelines.sources import find_source
from pipelines.verify import usable_images

PROBES = ("knn", "retrieval", "linear", "geometry")
UNITS = {"knn": " %", "retrieval": " %", "linear": " %"}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to score, and on which images.

    Attributes:
        checkpoint: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        images: the images to score on, `SRC` or `SRC@SPLIT`.
        gallery: other images, with labels, for k-NN to vote with and the linear probe to learn from; None leaves both
            out.
        untrained: score the encoder as it was before the first step.
        batch_size: images a forward pass.
        output: JSON file for the scores.
        tracking_uri: MLflow store of the run; None takes the one that the checkpoint names.
    """

    checkpoint: str
    images: str
    gallery: str | None = None
    untrained: bool = False
    batch_size: int = 64
    output: str | None = None
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.gallery == self.images:
            raise ValueError(f"gallery must hold other images than images ({self.images}): each would find itself")
        if self.output is not None and Path(self.output).is_dir():
            raise ValueError(f"output must be a JSON file, {self.output} is a folder")
        find_checkpoint(self.checkpoint)
        find_source(self.images)
        if self.gallery is not None:
            find_source(self.gallery)


def score(
    test: Features,
    gallery: Features | None = None,
    probes: Sequence[str] = PROBES,
    other_view: torch.Tensor | None = None,
) -> dict[str, float]:
    """Return what the labels allow of the scores that `probes` names.

    Args:
        test: the images to score on.
        gallery: other images, for "knn" and "linear"; these are left out without it.
        probes: any of `PROBES`.
        other_view: (N, D) features of another view of the test images; "geometry" then has their alignment, and its sum
            with the uniformity, too.

    Returns:
        In percent: knn/fine, knn/coarse, retrieval/rank1, retrieval/rank5, retrieval/map, linear/top1, linear/top5.
        Without unit: rankme, uniformity, alignment, and align_uniform, the sum of the last two (Wang and Isola 2020).

    Raises:
        ValueError: an unknown probe, or features that are not finite.
    """
    if unknown := set(probes) - set(PROBES):
        raise ValueError(f"probes: unknown {', '.join(sorted(unknown))}; there are {', '.join(PROBES)}")
    scores: dict[str, float] = {}
    if "knn" in probes and gallery is not None:
        scores |= _knn(test, gallery)
    if "retrieval" in probes:
        scores |= _retrieval(test)
    if "linear" in probes and gallery is not None:
        scores |= _linear(test, gallery)
    if "geometry" in probes:
        scores["rankme"] = rankme(test.features)
        if len(test.features) > 1:
            scores["uniformity"] = uniformity(test.features)
        if other_view is not None:
            scores["alignment"] = alignment(test.features, other_view)
        if {"alignment", "uniformity"} <= scores.keys():
            scores["align_uniform"] = scores["alignment"] + scores["uniformity"]
    return scores


def _knn(test: Features, gallery: Features) -> dict[str, float]:
    columns = {"knn/fine": (gallery.labels, test.labels), "knn/coarse": (gallery.coarse, test.coarse)}
    return {
        name: knn_accuracy(gallery.features, numbers[0], test.features, numbers[1])
        for name, labels in columns.items()
        if (numbers := _numbered(*labels))
    }


def _retrieval(test: Features) -> dict[str, float]:
    numbers = _numbered(test.labels)
    if not numbers or len(retrieval_queries(numbers[0])) == 0:
        return {}
    return {f"retrieval/{name}": value for name, value in retrieval_scores(test.features, numbers[0]).items()}


def _linear(test: Features, gallery: Features) -> dict[str, float]:
    numbers = _numbered(gallery.labels, test.labels)
    if not numbers or len(retrieval_queries(numbers[0])) == 0:
        return {}
    scores = linear_probe(gallery.features, numbers[0], test.features, numbers[1])
    return {f"linear/{name}": value for name, value in scores.items()}


def _numbered(*columns: list[str] | None) -> list[torch.Tensor]:
    """Number the classes of all columns together; an empty list where a column is missing."""
    present = [column for column in columns if column is not None]
    if len(present) < len(columns):
        return []
    numbers = {name: number for number, name in enumerate(sorted(set().union(*present)))}
    return [torch.tensor([numbers[name] for name in column]) for column in present]


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Score a checkpoint's encoder, print the scores, and keep them in a JSON file and the run's MLflow record.

    There they are the metrics `test/...`, and `test-untrained/...` of an untrained encoder. Ray must be running. A
    store that does not answer costs a warning, never the scores.

    Raises:
        ValueError: there is no such checkpoint, or the images cannot be read.
    """
    encoder, about = load_encoder(config.checkpoint, config.untrained)
    step = 0 if config.untrained else about["step"]
    print(f"{config.checkpoint}: the encoder {'before training' if config.untrained else f'after {step} steps'}")
    # Both sources are read before the first image is embedded: a bad gallery should not cost the time for the others.
    sources = [config.images] if config.gallery is None else [config.images, config.gallery]
    datasets = [usable_images(source) for source in sources]
    image_size = about["config"]["encoder"]["image_size"]
    test, *others = [extract(encoder, dataset, image_size, config.batch_size) for dataset in datasets]
    gallery = others[0] if others else None
    scores = score(test, gallery)
    print(table(scores))
    for line in omissions(test, gallery):
        print(line)
    if config.output is not None:
        _write(Path(config.output), {"step": step, "config": asdict(config), "scores": scores})
    # Apart from `eval/`, the scores during pretraining, which come of other images.
    prefix = "test-untrained" if config.untrained else "test"
    named = {f"{prefix}/{name}": value for name, value in scores.items()}
    _track(named, step, about["run_id"], config.tracking_uri or about["tracking_uri"])
    return scores


def table(scores: dict[str, float]) -> str:
    """Return the scores as lines of text, one a score."""
    width = max(map(len, scores), default=0)
    return "\n".join(
        f"  {name:{width}}  {value:8.2f}{UNITS.get(name.split('/')[0], '')}" for name, value in scores.items()
    )


def omissions(test: Features, gallery: Features | None) -> list[str]:
    """Return a line for everything that the scores leave out, and why."""
    lines = []
    if test.labels is None:
        lines.append("No retrieval, k-NN or linear probe: not every image has a label.")
    elif gallery is None:
        lines.append("No k-NN and no linear probe: they need a gallery of other labelled images.")
    elif gallery.labels is None:
        lines.append("No k-NN and no linear probe: not every gallery image has a label.")
    if numbers := _numbered(test.labels):
        alone = len(numbers[0]) - len(retrieval_queries(numbers[0]))
        if alone:
            lines.append(f"Retrieval: {alone} of {len(numbers[0])} images are no queries, the only one of their class.")
    return lines


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")


def _track(metrics: dict[str, float], step: int, run_id: str, uri: str) -> None:
    from mlflow.entities import Metric

    from pipelines.tracking import open_client

    now = now_ms()
    try:
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        open_client(uri).log_batch(run_id, metrics=points)
    except Exception as error:  # The scores are on the screen and on disk: no fault of a store may undo that.
        print(f"warning: the scores are not in MLflow ({uri}, run {run_id}): {type(error).__name__}: {error}")
