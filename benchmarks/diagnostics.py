"""What the training curves look like when a run is well, and when it is not: four real runs on the demo images.

    python -m benchmarks.diagnostics --storage runs --out benchmarks/results/diagnostics.json

Draws docs/images/diagnostics.png and writes the table in docs/method.md. Runs that `storage` holds already, to their
end or to where they diverged, are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import markdown_table, put, write_results
from cluster.connect import connect
from pipelines.demo.images import generate_demo_images
from pipelines.run.causes import NonFiniteLossError
from pipelines.run.config import load_recipe
from pipelines.run.folder import FINISHED
from pipelines.takeaway.charts import running_mean, thinned
from pipelines.tracking.record import read_record
from pipelines.training.pretrain import pretrain

HEALTHY = "healthy"
RECIPE = load_recipe("demo", {"data.images": "birds"}).optim
CASES: dict[str, dict[str, Any]] = {
    HEALTHY: {},
    "learning rate x 30": {"optim.base_lr": 30 * RECIPE.base_lr},
    # With the same peak of the learning rate, which is scaled by the batch.
    "batch of 4": {"optim.batch_size": 4, "optim.base_lr": RECIPE.base_lr * RECIPE.batch_size / 4},
    "temperature 2": {"model.temperature": 2.0},
}
CURVES = {
    "loss": "loss",
    "contrastive/top1": "contrastive/top1, %",
    "feature/std": "feature/std",
    "feature/effective_rank": "feature/effective_rank",
    "pivots/entropy": "pivots/entropy",
    "eval/knn/fine": "eval/knn/fine, %",
}
POINTS = 150  # of a curve
DIVERGED = "diverged"  # an empty file in the folder of a run that did
PAGE, PICTURE = Path("docs/method.md"), Path("docs/images/diagnostics.png")
Row = dict[str, Any]


def main() -> None:
    """Run what is missing, write the curves, draw them and tell where they end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/diagnostics.json"))
    arguments = parser.parse_args()
    with connect():
        rows = [measure(case, overrides, arguments.storage) for case, overrides in CASES.items()]
    write_results(arguments.out, rows)
    draw(rows).savefig(PICTURE, dpi=100)
    PAGE.write_text(put(PAGE.read_text(), "diagnostics", table(rows)))


def measure(case: str, overrides: Mapping[str, Any], storage: Path) -> Row:
    """Return {case, overrides, diverged, curves}, running the case where it has not been."""
    made = storage / "demo-images"
    generate_demo_images(str(made), seed=0, train_per_class=60, test_per_class=20)
    images = {"data.images": f"{made}/train", "data.eval_images": f"{made}/test"}
    name = "diagnostics-" + case.replace(" ", "-")
    place = {"storage": str(storage), "name": name, "evaluation.every_epochs": 1}
    folder = storage / name
    if not any((folder / end).exists() for end in (FINISHED, DIVERGED)):
        resume = (folder / "config.yaml").exists()
        try:
            pretrain(load_recipe("demo", {**images, **place, **overrides, "resume": resume}))
        except NonFiniteLossError:
            (folder / DIVERGED).touch()
    run = json.loads((folder / "tracking.json").read_text())
    curves = read_record(run["uri"], run["run_id"]).curves
    shown = {name: kept(np.array(curves[name].epochs), np.array(curves[name].values)) for name in CURVES}
    diverged = (folder / DIVERGED).exists()
    return {"case": case, "overrides": dict(overrides), "diverged": diverged, "curves": shown}


def kept(epochs: np.ndarray, values: np.ndarray) -> dict[str, list[float]]:
    """Return a curve as rows keep it: thinned and rounded."""
    epochs, values = thinned(epochs, values, POINTS)
    return {"epochs": epochs.round(3).tolist(), "values": values.round(4).tolist()}


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a chart for each curve, a line for each case; of dense curves the running mean."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        for row in rows:
            curve, width = row["curves"][name], 2.4 if row["case"] == HEALTHY else 1.4
            axes.plot(curve["epochs"], smooth(curve["values"]), label=row["case"], linewidth=width)
        axes.set(title=title, xlabel="epoch", yscale="log" if name == "loss" else "linear")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(rows), frameon=False)
    return figure


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return the running mean over a fifteenth of the run."""
    return running_mean(np.array(values), len(values) // 15)


def table(rows: Sequence[Row]) -> str:
    """Return where the smooth curves end, as Markdown."""
    cells = [
        (
            row["case"] + (", diverged" if row["diverged"] else ""),
            *(f"{smooth(row['curves'][name]['values'])[-1]:.3g}" for name in CURVES),
        )
        for row in rows
    ]
    return markdown_table(("run", *(f"`{name}`" for name in CURVES)), cells)


if __name__ == "__main__":
    main()
