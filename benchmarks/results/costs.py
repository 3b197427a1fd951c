"""What a training step of each contender costs, in turn on one machine that does nothing else.

    python -m benchmarks.results.costs --out benchmarks/results/costs.json

The runs of `benchmarks.results` share the machine with one another, so they tell nothing of this. Views are random
numbers, which cost a step what images do.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.report import write_results
from benchmarks.results.contenders import MAIN, STEP_OF, VARIANTS, Contender
from benchmarks.step import step
from benchmarks.timing import interleave, spread
from lodisc.model import LoDisc
from lodisc.precision import resolve_precision
from pipelines.run.config import load_recipe

CPU = torch.device("cpu")
RECIPES = ("demo", "grocery")
ROUNDS = 12
COSTS = Path("benchmarks/results/costs.json")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=COSTS)
    arguments = parser.parse_args()
    distinct = [way for way in (*MAIN, *VARIANTS) if way.name not in STEP_OF]
    rows = [row for recipe in RECIPES for row in measure_costs(recipe, distinct)]
    write_results(arguments.out, rows)
    for row in rows:
        print(f"{row['recipe']}: {row['contender']}: {row['images_per_second']:.0f} images/s")


def read_costs(recipe: str, path: Path = COSTS) -> dict[str, dict[str, Any]]:
    """Return the costs of each contender with a recipe."""
    rows = json.loads(path.read_text())["rows"]
    return {row["contender"]: row for row in rows if row["recipe"] == recipe}


def measure_costs(recipe: str, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Time steps of all contenders in turn, on views that are there already.

    Args:
        recipe: of all of them, but for what they are named for.
        contenders: all with the same batch.

    Returns:
        A row a contender: {recipe, contender, seconds, images_per_second, cpu_hours_per_step}. Seconds are the median,
        the fastest and the slowest step; CPU-hours count all CPUs of the machine.
    """
    steps = {}
    for contender in contenders:
        config = load_recipe(recipe, {"data.images": "none is read", "compute.gpus": False, **contender.overrides})
        model = LoDisc(config.encoder, config.model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        views = torch.randn(2, config.optim.batch_size, 3, config.encoder.image_size, config.encoder.image_size)
        dtype = resolve_precision(config.optim.precision, CPU)
        steps[contender.name] = functools.partial(step, model, optimizer, views, config.model.local_view, dtype)
        steps[contender.name]()
    batch = config.optim.batch_size
    times = {name: spread(seconds) for name, seconds in interleave(steps, ROUNDS).items()}
    return [
        {
            "recipe": recipe,
            "contender": name,
            "seconds": time,
            "images_per_second": batch / time["median"],
            "cpu_hours_per_step": time["median"] / 3600 * (psutil.cpu_count() or 1),
        }
        for name, time in times.items()
    ]


if __name__ == "__main__":
    main()
