"""Score a pretrained encoder on labelled images, as the paper does and by label-free measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lodisc.probes.retrieval import retrieval_queries
from pipelines.data.verify import usable_images
from pipelines.evaluation.confusion import confusion_summary, confusion_table
from pipelines.evaluation.evaluators import Seen, numbered, score
from pipelines.evaluation.features import Features, extract
from pipelines.evaluation.options import EvaluateConfig
from pipelines.evaluation.scores import NEED_GALLERY, PROBES, SCORES
from pipelines.run.checkpoint import load_encoder
from pipelines.tracking.store import track

NAMES = {"knn": "k-NN", "retrieval": "retrieval", "linear": "linear probe"}


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
    seen = Seen(test, gallery)
    scores = score(seen, config.probes)
    print(table(scores))
    for line in omissions(test, gallery, config.probes):
        print(line)
    confused = confusions_of(seen, config.probes)
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
    return "\n".join(f"  {name:{width}}  {value:8.2f} {SCORES[name].unit}".rstrip() for name, value in scores.items())


def confusions_of(seen: Seen, probes: Sequence[str] = PROBES) -> dict[str, Any]:
    """Print which fine classes are taken for which, and return that as plain values.

    Returns:
        By "knn" and "linear", where there is one: what `confusion_summary` gives.
    """
    found = {}
    for probe, by in {"knn": "knn/fine", "linear": "linear"}.items():
        ranked = seen.ranked(by) if probe in probes else None
        if ranked is not None and seen.test.labels is not None:
            classes = (seen.test.labels, [row[0] for row in ranked], seen.test.coarse)
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
        _, numbers = numbered(test.labels)
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
