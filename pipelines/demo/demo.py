"""The whole line on made images: pretrain LoDisc and MoCo v3, and show what each learned beside no training at all."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from mlflow import MlflowClient

from pipelines.data.run_images import load_images
from pipelines.demo.images import generate_demo_images
from pipelines.demo.options import DemoConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.options import EvaluateConfig
from pipelines.evaluation.scores import SCORES
from pipelines.run.config import PretrainConfig, load_recipe
from pipelines.training.pretrain import PretrainResult, pretrain

COLUMNS = {
    name: SCORES[name].title for name in ("knn/fine", "knn/coarse", "retrieval/rank1", "retrieval/map", "linear/top1")
}


def demo(config: DemoConfig) -> dict[str, dict[str, float]]:
    """Make the images, pretrain, evaluate, and print what came out.

    Ray must be running.

    Returns:
        The scores of each encoder, as `evaluate` names them.

    Raises:
        ValueError: the images cannot be made in `config.data`, or a batch is larger than all of them.
    """
    started = time.monotonic()
    generate_demo_images(
        config.data,
        seed=config.seed,
        train_per_class=config.train_per_class,
        test_per_class=config.test_per_class,
    )
    recipe = demo_recipe(config)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    baseline = replace(recipe, name=f"demo-mocov3-{stamp}", model=replace(recipe.model, local_weight=0.0))
    images = load_images(recipe)  # once: both runs read the same
    print("\n1/3  MoCo v3, the baseline: the same recipe without the local branch", flush=True)
    mocov3 = pretrain(baseline, images=images)
    print("\n2/3  LoDisc", flush=True)
    lodisc = pretrain(replace(recipe, name=f"demo-lodisc-{stamp}"), images=images)
    print("\n3/3  What the encoders make of test images that none has seen", flush=True)
    scores = {
        "untrained": score(recipe, lodisc, untrained=True),
        "MoCo v3": score(recipe, mocov3),
        "LoDisc": score(recipe, lodisc),
    }
    print(f"\n{table(scores)}\n\n{what_next(config, lodisc, time.monotonic() - started)}")
    keep(scores, lodisc)
    return scores


def demo_recipe(config: DemoConfig) -> PretrainConfig:
    """Return the shipped recipe `demo` with the demonstration's images and length; a warm-up keeps its share."""
    images = {"data.images": f"{config.data}/train", "data.eval_images": f"{config.data}/test"}
    recipe = load_recipe("demo", {**images, "storage": config.storage, "seed": config.seed})
    if config.epochs is None:
        return recipe
    warmup = recipe.optim.warmup_epochs * config.epochs / recipe.optim.epochs
    return replace(recipe, optim=replace(recipe.optim, epochs=config.epochs, warmup_epochs=warmup))


def score(recipe: PretrainConfig, run: PretrainResult, untrained: bool = False) -> dict[str, float]:
    """Evaluate a run's encoder on the test images, with the training images for gallery."""
    assert recipe.data.eval_images is not None
    return evaluate(
        EvaluateConfig(
            checkpoint=run.checkpoint,
            images=recipe.data.eval_images,
            gallery=recipe.data.images,
            untrained=untrained,
        )
    )


def table(scores: dict[str, dict[str, float]]) -> str:
    """Return the scores in percent as lines of text, an encoder a line."""
    lines = [" " * 12 + "".join(f"{title:>14}" for title in COLUMNS.values())]
    for encoder, values in scores.items():
        lines.append(f"{encoder:12}" + "".join(f"{values[name]:14.1f}" for name in COLUMNS))
    return "\n".join(lines)


def keep(scores: dict[str, dict[str, float]], run: PretrainResult) -> None:
    """Write the comparison beside the LoDisc run and show it as a table in the run's MLflow artifacts."""
    (Path(run.run_dir) / "comparison.json").write_text(json.dumps(scores, indent=2) + "\n")
    columns = {title: [values[name] for values in scores.values()] for name, title in COLUMNS.items()}
    MlflowClient(run.tracking_uri).log_table(run.run_id, {"encoder": list(scores), **columns}, "comparison.json")


def what_next(config: DemoConfig, run: PretrainResult, seconds: float) -> str:
    """Return what the numbers mean, and where to look."""
    storage = "" if config.storage == DemoConfig.storage else f" --storage {config.storage}"
    return f"""All in percent, higher is better; no label was used to train. Time taken: {seconds / 60:.1f} minutes.
k-NN, Rank-1 and mAP ask whether images of one class lie together; the linear probe, whether a line parts the classes.

Look next at
  the curves and pictures (where the pivots lie, nearest neighbours):  lodisc ui{storage}
  the images:              {config.data}
  the pretrained encoder:  {run.checkpoint}
  your own images:         lodisc pretrain --config demo --data.images FOLDER"""
