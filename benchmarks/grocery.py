"""What pretraining teaches on the Grocery Store photographs, beside no training and MoCo v3: one recipe, equal steps.

    python -m benchmarks.grocery --data GROCERY --storage runs --out benchmarks/results/grocery.json

GROCERY is the folder of the Grocery Store Dataset (train.txt, val.txt, test.txt). Runs that `storage` holds already are
not run again. All scores are of the official test split, with the training split as gallery; nothing was chosen on it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.report import markdown_table, write_results
from cluster.connect import connect
from pipelines.config import load_recipe
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.pretrain import pretrain

CONTENDERS: dict[str, dict[str, Any]] = {
    "LoDisc tokens": {"model.local_view": "tokens"},
    "MoCo v3": {"model.local_weight": 0.0},
    "LoDisc pixels": {"model.local_view": "pixels"},
}
SEEDS = {"LoDisc tokens": (0, 1), "MoCo v3": (0, 1), "LoDisc pixels": (0,)}
NAMES = {"LoDisc tokens": "lodisc-tokens", "MoCo v3": "mocov3", "LoDisc pixels": "lodisc-pixels"}
COLUMNS = ("knn/fine", "knn/coarse", "retrieval/rank1", "retrieval/map", "linear/top1", "rankme")


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/grocery.json"))
    arguments = parser.parse_args()
    with connect():
        rows = measure(arguments.data, arguments.storage)
    write_results(arguments.out, rows)
    print(table(rows))


def measure(data: Path, storage: Path) -> list[dict[str, Any]]:
    """Return a row a contender and seed: {contender, seed, minutes, scores}; the untrained encoders last."""
    rows = []
    for contender, overrides in CONTENDERS.items():
        for seed in SEEDS[contender]:
            run, minutes = storage / f"{NAMES[contender]}-s{seed}", None
            if not (run / "result.json").exists():
                started = time.monotonic()
                split = {"data.images": str(data / "train.txt"), "data.eval_images": str(data / "val.txt")}
                place = {"storage": str(storage), "name": run.name, "seed": seed}
                pretrain(load_recipe("grocery", {**split, **place, **overrides}))
                minutes = round((time.monotonic() - started) / 60, 1)
            rows.append({"contender": contender, "seed": seed, "minutes": minutes, "scores": score(data, run, False)})
    for seed in SEEDS["MoCo v3"]:
        run = storage / f"{NAMES['MoCo v3']}-s{seed}"
        rows.append({"contender": "untrained", "seed": seed, "minutes": 0.0, "scores": score(data, run, True)})
    return rows


def score(data: Path, run: Path, untrained: bool) -> dict[str, float]:
    """Evaluate a run's encoder on the test split, once: the scores are kept beside the run."""
    output = run / ("scores-untrained.json" if untrained else "scores.json")
    if not output.exists():
        evaluate(
            EvaluateConfig(
                checkpoint=str(run),
                images=str(data / "test.txt"),
                gallery=str(data / "train.txt"),
                untrained=untrained,
                output=str(output),
            )
        )
    scores: dict[str, float] = json.loads(output.read_text())["scores"]
    return scores


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    cells = [(row["contender"], row["seed"], *(f"{row['scores'][name]:.1f}" for name in COLUMNS)) for row in rows]
    return markdown_table(("encoder", "seed", *COLUMNS), cells)


if __name__ == "__main__":
    main()
