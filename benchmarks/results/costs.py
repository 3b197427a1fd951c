"""What a training step of each contender costs, in turn on one machine that does nothing else.

    python -m benchmarks.results.costs --data GROCERY --out benchmarks/results/costs.json

The runs of `benchmarks.results` share the machine with one another, so they tell nothing of this.
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
from benchmarks.results.contenders import MAIN, MOCO, SETS, VARIANTS, Contender, DataSet, data_set
from benchmarks.step import step
from benchmarks.timing import interleave, spread
from lodisc.model import LoDisc
from pipelines.precision import resolve_precision

CPU = torch.device("cpu")
ROUNDS = 40
# What the weight of the local loss is changes nothing.
DISTINCT = tuple(way for way in (*MAIN, *VARIANTS) if not way.name.startswith("local weight"))
COSTS = Path("benchmarks/results/costs.json")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=COSTS)
    arguments = parser.parse_args()
    rows = []
    for name in SETS:
        rows += measure_costs(data_set(name, arguments.data, arguments.storage), DISTINCT)
    write_results(arguments.out, rows)
    for row in rows:
        print(f"{row['set']}: {row['contender']}: {row['images_per_second']:.0f} images/s")


def read_costs(data: str, path: Path = COSTS) -> dict[str, dict[str, Any]]:
    """Return the costs of each contender on a data set."""
    rows = json.loads(path.read_text())["rows"]
    return {row["contender"]: row for row in rows if row["set"] == data}


def time_share(name: str, costs: dict[str, dict[str, Any]]) -> float:
    """Return how many times as long as a step of MoCo v3 one of another contender takes."""
    return float(costs[name]["seconds"]["median"] / costs[MOCO]["seconds"]["median"])


def measure_costs(data: DataSet, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Time steps of all contenders in turn, on views that are there already.

    Returns:
        A row a contender: {set, contender, seconds, images_per_second, cpu_hours_per_step}. Seconds are the median, the
        fastest and the slowest step; CPU-hours count all CPUs of the machine.
    """
    steps = {}
    for contender in contenders:
        config = data.config(contender, 0, "")
        model = LoDisc(config.encoder, config.model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        views = torch.randn(2, config.optim.batch_size, 3, config.encoder.image_size, config.encoder.image_size)
        dtype = resolve_precision(config.optim.precision, CPU)
        steps[contender.name] = functools.partial(step, model, optimizer, views, config.model.local_view, dtype)
        steps[contender.name]()
    batch = data.config(contenders[0], 0, "").optim.batch_size
    times = {name: spread(seconds) for name, seconds in interleave(steps, ROUNDS).items()}
    return [
        {
            "set": data.name,
            "contender": name,
            "seconds": time,
            "images_per_second": batch / time["median"],
            "cpu_hours_per_step": time["median"] / 3600 * (psutil.cpu_count() or 1),
        }
        for name, time in times.items()
    ]


if __name__ == "__main__":
    main()
