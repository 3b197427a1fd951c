"""Score a pretrained encoder on labelled images, as the paper does and by label-free measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lodisc.probes.geometry import alignment, rankme, uniformity
from lodisc.probes.knn import knn_predictions
from lodisc.probes.linear import fit_linear
from lodisc.probes.retrieval import retrieval_queries, retrieval_scores
from pipelines.data.verify import usable_images
from pipelines.evaluation.confusion import confusion_summary, confusion_table
from pipelines.evaluation.features import Features, extract
from pipelines.evaluation.options import NEED_GALLERY, PROBES, EvaluateConfig
from pipelines.run.checkpoint import load_encoder
from pipelines.tracking.store import track

NAMES = {"knn": "k-NN", "retrieval": "retrieval", "linear": "linear probe"}
# Of each image, the classes that it may be of, best first.
Ranked = list[list[str]]
UNITS = {"knn": " %", "retrieval": " %", "linear": " %"}


def score(
    test: Features,
    gallery: Features | None = None,
    probes: Sequence[str] = PROBES,
    other_view: torch.Tensor | None = None,
    predicted: Mapping[str, Ranked] | None = None,
) -> dict[str, float]:
    """Return what the labels allow of the scores that `probes` names.

    Args:
        test: the images to score on.
        gallery: other images, for "knn" and "linear"; these are left out without it.
        probes: any of `PROBES`.
        other_view: (N, D) features of another view of the test images; "geometry" then has their alignment, and its sum
            with the uniformity, too.
        predicted: what `predict` gave for the same arguments, where that is known already.

    Returns:
        In percent: knn/fine, knn/coarse, retrieval/rank1, retrieval/rank5, retrieval/map, linear/top1, linear/top5.
        Without unit: rankme, uniformity, alignment, and align_uniform, the sum of the last two (Wang and Isola 2020).

    Raises:
        ValueError: an unknown probe, or features that are not finite.
    """
    if unknown := set(probes) - set(PROBES):
        raise ValueError(f"probes: unknown {', '.join(sorted(unknown))}; there are {', '.join(PROBES)}")
    predicted = predict(test, gallery, probes) if predicted is None else predicted
    scores = _knn(test, predicted)
    if "retrieval" in probes:
        scores |= _retrieval(test)
    scores |= _linear(test, predicted)
    if "geometry" in probes:
        scores["rankme"] = rankme(test.features)
        if len(test.features) > 1:
            scores["uniformity"] = uniformity(test.features)
        if other_view is not None:
            scores["alignment"] = alignment(test.features, other_view)
        if {"alignment", "uniformity"} <= scores.keys():
            scores["align_uniform"] = scores["alignment"] + scores["uniformity"]
    return scores


def predict(test: Features, gallery: Features | None, probes: Sequence[str] = PROBES) -> dict[str, Ranked]:
    """Return the classes that the gallery's labels give the test images, where both have labels.

    Args:
        test, gallery, probes: as for `score`.

    Returns:
        By "knn/fine", "knn/coarse" and "linear": of each test image one class, or of "linear" up to five, best first.
    """
    predicted: dict[str, Ranked] = {}
    if gallery is None:
        return predicted
    columns = {"fine": (gallery.labels, test.labels), "coarse": (gallery.coarse, test.coarse)}
    for kind, (known, asked) in columns.items():
        if "knn" in probes and known is not None and asked is not None:
            names, numbers = _numbered(known)
            voted = knn_predictions(gallery.features, numbers, test.features)
            predicted[f"knn/{kind}"] = [[names[number]] for number in voted.tolist()]
    if "linear" in probes and gallery.labels is not None and test.labels is not None:
        names, numbers = _numbered(gallery.labels)
        if len(names) < len(numbers):  # The strength of its penalty is chosen on a second image of some class.
            ranked = fit_linear(gallery.features, numbers).rank(test.features)
            predicted["linear"] = [[names[number] for number in row] for row in ranked.tolist()]
    return predicted


def _knn(test: Features, predicted: Mapping[str, Ranked]) -> dict[str, float]:
    truth = {"knn/fine": test.labels, "knn/coarse": test.coarse}
    return {name: _share_of_hits(truth[name], predicted[name]) for name in truth if name in predicted}


def _linear(test: Features, predicted: Mapping[str, Ranked]) -> dict[str, float]:
    if "linear" not in predicted:
        return {}
    best = [ranked[:1] for ranked in predicted["linear"]]
    return {
        "linear/top1": _share_of_hits(test.labels, best),
        "linear/top5": _share_of_hits(test.labels, predicted["linear"]),
    }


def _share_of_hits(truth: list[str] | None, ranked: Ranked) -> float:
    """Return of how many images the true class is among those that were ranked, in percent."""
    assert truth is not None, "only images with labels are predicted"
    return 100 * sum(label in row for label, row in zip(truth, ranked, strict=True)) / len(ranked)


def _retrieval(test: Features) -> dict[str, float]:
    if test.labels is None or len(set(test.labels)) == len(test.labels):
        return {}
    _, numbers = _numbered(test.labels)
    return {f"retrieval/{name}": value for name, value in retrieval_scores(test.features, numbers).items()}


def _numbered(labels: list[str]) -> tuple[list[str], torch.Tensor]:
    """Return the classes of labels (N), sorted, and of each label the number (N,) int64 of its class."""
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    return names, torch.tensor([numbers[label] for label in labels])


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
    predicted = predict(test, gallery, config.probes)
    scores = score(test, gallery, config.probes, predicted=predicted)
    print(table(scores))
    for line in omissions(test, gallery, config.probes):
        print(line)
    confused = confusions_of(test, predicted)
    if config.output is not None:
        about_scores = {"step": step, "config": asdict(config), "scores": scores, "confusions": confused}
        _write(Path(config.output), about_scores)
    # Apart from `eval/`, the scores during pretraining, which come of other images.
    prefix = "test-untrained" if config.untrained else "test"
    named = {f"{prefix}/{name}": value for name, value in scores.items()}
    track(named, step, about["run_id"], config.tracking_uri or about["tracking_uri"])
    return scores


def table(scores: dict[str, float]) -> str:
    """Return the scores as lines of text, one a score."""
    width = max(map(len, scores), default=0)
    return "\n".join(
        f"  {name:{width}}  {value:8.2f}{UNITS.get(name.split('/')[0], '')}" for name, value in scores.items()
    )


def confusions_of(test: Features, predicted: Mapping[str, Ranked]) -> dict[str, Any]:
    """Print which fine classes are taken for which, and return that as plain values.

    Args:
        test: the images.
        predicted: what `predict` gave for them.

    Returns:
        By "knn" and "linear", where there is one: what `confusion_summary` gives.
    """
    found = {}
    for probe, name in {"knn": "knn/fine", "linear": "linear"}.items():
        if name in predicted and test.labels is not None:
            classes = (test.labels, [ranked[0] for ranked in predicted[name]], test.coarse)
            print(f"{NAMES[probe]}: {confusion_table(*classes)}")
            found[probe] = confusion_summary(*classes)
    return found


def omissions(test: Features, gallery: Features | None, probes: Sequence[str] = PROBES) -> list[str]:
    """Return a line for everything that the scores leave out, and why."""
    lines = []
    if test.labels is None:
        lines.append(_none_of(probes, ("retrieval", *NEED_GALLERY), "not every image has a label"))
    elif gallery is None:
        lines.append(_none_of(probes, NEED_GALLERY, "a gallery of other labelled images is needed"))
    elif gallery.labels is None:
        lines.append(_none_of(probes, NEED_GALLERY, "not every gallery image has a label"))
    elif len(set(gallery.labels)) == len(gallery.labels):
        lines.append(_none_of(probes, ("linear",), "no class has two gallery images"))
    if test.labels and "retrieval" in probes:
        _, numbers = _numbered(test.labels)
        alone = len(numbers) - len(retrieval_queries(numbers))
        if alone:
            lines.append(f"Retrieval: {alone} of {len(numbers)} images are no queries, the only one of their class.")
    return [line for line in lines if line]


def _none_of(probes: Sequence[str], missing: Sequence[str], why: str) -> str:
    left_out = [NAMES[probe] for probe in missing if probe in probes]
    return f"Left out: {', '.join(left_out)}; {why}." if left_out else ""


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")
