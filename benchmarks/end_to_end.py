"""Images a second of `lodisc pretrain`, beside what its two halves reach by themselves on the same cores.

    python -m benchmarks.end_to_end --out benchmarks/results/end_to_end.json

Without any overhead a run that trains and draws views on the same cores reaches 1 / (1 / step + 1 / ingest). The rate
of a run is that of its last three quarters, with checkpoints between; views drawn ahead before that are few.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from benchmarks.ingest import drain, stream_batches
from benchmarks.photographs import make_photographs
from benchmarks.report import markdown_table, write_results
from benchmarks.timing import in_new_process, spread
from cluster.connect import connect
from lodisc.attention import fuse_attention
from lodisc.model import LoDisc
from lodisc.normalise import normalise
from lodisc.precision import autocast, fused_trains_faster, resolve_precision
from pipelines.data.options import PrepareConfig
from pipelines.data.prepare import prepare
from pipelines.run.config import PretrainConfig, load_recipe
from pipelines.training.pretrain import PretrainResult, pretrain
from pipelines.training.timing import PHASES

IMAGES = 320
# Two ends of what may be slow: a network that keeps the cores busy for seconds, and one for a few tenths of a second.
WORKLOADS: dict[str, dict[str, Any]] = {
    "ViT-S/16, 224 px": {
        "encoder": {"arch": "vit_small_patch16_224", "image_size": 224, "patch_size": 16, "depth": 12},
        "optim.batch_size": 16,
        "optim.epochs": 2,
    },
    "grocery recipe, 64 px": {},
}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/end_to_end.json"))
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=cores):
        images = make_photographs(Path(folder) / "images", IMAGES, 348, 348)
        prepare(PrepareConfig(source=str(images), destination=f"{folder}/prepared"))
        rows = [measure(name, Path(folder), arguments.rounds) for name in arguments.workloads]
    write_results(arguments.out, rows)
    print(table(rows))


def measure(workload: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Take the three in turn and return {workload, step, ingest, run, bound, ratio, phases}."""
    rates: dict[str, list[float]] = {"step": [], "ingest": [], "run": []}
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for number in range(rounds):
        config = config_of(workload, folder, number)
        rates["step"].append(step_rate(config))
        rates["ingest"].append(ingest_rate(config))
        result = pretrain(config)
        rates["run"].append(run_rate(result, config.optim.batch_size))
        for phase, values in phases.items():
            values.append(statistics.fmean(curve(result, f"time/{phase}")[1][1:]))
    bounds = [1 / (1 / step + 1 / ingest) for step, ingest in zip(rates["step"], rates["ingest"], strict=True)]
    ratios = [run / bound for run, bound in zip(rates["run"], bounds, strict=True)]
    return {
        "workload": workload,
        "batch": config.optim.batch_size,
        **{name: spread(values) for name, values in rates.items()},
        "bound": spread(bounds),
        "ratio": spread(ratios),
        "seconds_a_step": {phase: spread(values) for phase, values in phases.items()},
    }


def config_of(workload: str, folder: Path, number: int) -> PretrainConfig:
    place = {"data.images": f"{folder}/prepared", "storage": f"{folder}/runs"}
    run = {"name": f"{workload.split()[0].replace('/', '-')}-{number}", "evaluation.every_epochs": 1000}
    return load_recipe("grocery", {**place, **run, **WORKLOADS[workload]})


def step_rate(config: PretrainConfig) -> float:
    """Return the images a second of the step by itself, in a process that has every core."""
    return in_new_process(time_steps, config)


def time_steps(config: PretrainConfig, seconds: float = 20.0) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision(config.optim.precision, device)
    model = LoDisc(config.encoder, config.model).to(device)
    fuse_attention(model.encoder.vit, fused_trains_faster(dtype, device))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    size = config.encoder.image_size
    views = torch.randint(256, (2, config.optim.batch_size, 3, size, size), dtype=torch.uint8).to(device)

    def step() -> None:
        model.update_momentum(config.model.momentum)
        with autocast(dtype, device):
            loss, _ = model(normalise(views[0]), normalise(views[1]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * config.optim.batch_size / (time.perf_counter() - started)


def ingest_rate(config: PretrainConfig, samples: int = 6400) -> float:
    """Return the images a second of the views by themselves, once they come."""
    batch = config.optim.batch_size
    count = samples // batch

    def stream() -> Iterator[object]:
        return stream_batches(Path(config.data.images), batch, count, config.views, config.encoder.image_size)

    _, each = drain(stream, count)
    return batch / each


def run_rate(result: PretrainResult, batch: int) -> float:
    times, _ = curve(result, "loss")
    times = times[len(times) // 4 :]
    return (len(times) - 1) * batch / (times[-1] - times[0])


def curve(result: PretrainResult, metric: str) -> tuple[list[float], list[float]]:
    """Return the times, in seconds since 1970, and values of a metric, a pair a step."""
    history = MlflowClient(result.tracking_uri).get_metric_history(result.run_id, metric)
    points = sorted(history, key=lambda point: point.step)
    return [point.timestamp / 1000 for point in points], [point.value for point in points]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown: images a second, and where a step's time goes."""
    header = ("workload", "step alone", "ingest alone", "bound", "`lodisc pretrain`", "of the bound", *PHASES)
    return markdown_table(
        header,
        [
            (
                f"{row['workload']}, batch {row['batch']}",
                *(f"{row[name]['median']:.1f}" for name in ("step", "ingest", "bound", "run")),
                "{median:.2f} ({min:.2f}-{max:.2f})".format(**row["ratio"]),
                *(f"{row['seconds_a_step'][phase]['median']:.3f} s" for phase in PHASES),
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
