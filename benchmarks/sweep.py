"""What successive halving saves on the Grocery Store photographs: the same random trials, stopped early and not.

    python -m benchmarks.sweep --data GROCERY --storage runs --out benchmarks/results/sweep.json

GROCERY is the folder of the Grocery Store Dataset (train.txt, val.txt, test.txt). Sweeps and runs that `storage` holds
already are not run again, and what was cut off goes on. Trials are tuned on Rank-1 of the validation split; the
test split is looked at once, for the best trial of each sweep and for the recipe itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.report import markdown_table, write_results
from cluster.connect import connect
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.options import EvaluateConfig
from pipelines.run.config import DataConfig, TrackingConfig, load_recipe
from pipelines.run.folder import FINISHED
from pipelines.tracking.store import find_run
from pipelines.training.pretrain import pretrain
from tuning.config import SweepConfig
from tuning.report import SWEEP_TAG, SweepReport, importance, read_sweep
from tuning.sweep import tune

TRIALS = 12
OBJECTIVE = "retrieval/rank1"
SHORTER = {"optim.epochs": 4}  # than the recipe's, so that the whole takes half an hour on 2 cores
SWEEPS = {"none": "grocery-all", "asha": "grocery-asha"}
RECIPE = "grocery-recipe"
COLUMNS = ("knn/fine", "retrieval/rank1", "retrieval/map", "linear/top1")


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sweep.json"))
    arguments = parser.parse_args()
    with connect():
        rows = [measure_sweep(arguments.data, arguments.storage, scheduler) for scheduler in SWEEPS]
        rows.append(measure_recipe(arguments.data, arguments.storage))
    write_results(arguments.out, rows)
    print(table(rows))


def measure_sweep(data: Path, storage: Path, scheduler: Any) -> dict[str, Any]:
    """Return what a sweep took and found: {scheduler, epochs, trials, importance, best, test}."""
    name = SWEEPS[scheduler]
    if not (storage / name / FINISHED).exists():
        tune(
            SweepConfig(
                recipe="grocery",
                data=DataConfig(images=str(data / "train.txt"), eval_images=str(data / "val.txt")),
                overrides={**SHORTER, "evaluation.every_epochs": 1},
                objective=OBJECTIVE,
                sampler="random",
                scheduler=scheduler,
                trials=TRIALS,
                name=name,
                storage=str(storage),
                resume=(storage / name / "config.yaml").exists(),
            )
        )
    found = read_sweep(*find_run(TrackingConfig(), str(storage), name, SWEEP_TAG), OBJECTIVE)
    assert found.best is not None, "a finished sweep has a best trial"
    return {
        "scheduler": scheduler,
        "epochs": sum(trial.epoch for trial in found.trials),
        "trials": trials(found),
        "importance": {"epoch": found.common_epoch, **importance(found)},
        "best": found.best.name,
        "test": score(data, storage / name / found.best.name),
    }


def trials(found: SweepReport) -> list[dict[str, Any]]:
    """Return each trial's values, outcome and scores by epoch."""
    return [
        {"name": trial.name, **trial.params, "outcome": trial.outcome, "scores": trial.scores} for trial in found.trials
    ]


def measure_recipe(data: Path, storage: Path) -> dict[str, Any]:
    """Return the scores of the recipe as it is shipped, but for its length."""
    if not (storage / RECIPE / FINISHED).exists():
        split = {"data.images": str(data / "train.txt"), "data.eval_images": str(data / "val.txt")}
        own = {"name": RECIPE, "storage": str(storage), "resume": (storage / RECIPE / "config.yaml").exists()}
        pretrain(load_recipe("grocery", {**split, **SHORTER, **own}))
    return {"scheduler": None, "best": RECIPE, "test": score(data, storage / RECIPE)}


def score(data: Path, run: Path) -> dict[str, float]:
    """Evaluate a run's encoder on the test split, once: the scores are kept beside the run."""
    output = run / "scores.json"
    if not output.exists():
        evaluate(
            EvaluateConfig(
                checkpoint=str(run),
                images=str(data / "test.txt"),
                gallery=str(data / "train.txt"),
                output=str(output),
            )
        )
    scores: dict[str, float] = json.loads(output.read_text())["scores"]
    return scores


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    cells = [(row["best"], row.get("epochs", ""), *(f"{row['test'][name]:.1f}" for name in COLUMNS)) for row in rows]
    return markdown_table(("best trial", "epochs run", *(f"test {name}" for name in COLUMNS)), cells)


if __name__ == "__main__":
    main()
