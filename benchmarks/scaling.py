"""One worker beside two on this machine: images a second, and the bytes that a step moves.

    python -m benchmarks.scaling --out benchmarks/results/scaling.json

The global batch is the same. What is sent over loopback is read from the machine's counters between the first step and
the last; beside it stands what the method has to send. What a pair of views puts into the object store, and how many
blocks Ray Data deals, is measured on streams by themselves.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.end_to_end import config_of, curve
from benchmarks.ingest import stream_batches
from benchmarks.photographs import make_photographs
from benchmarks.report import markdown_table, write_results
from benchmarks.timing import spread
from benchmarks.traffic import Traffic
from cluster.connect import connect
from lodisc.batch_norm import GlobalBatchNorm1d
from lodisc.model import LoDisc
from pipelines.data.options import PrepareConfig
from pipelines.data.prepare import prepare
from pipelines.data.samples import SampleOrder
from pipelines.data.stream import Draw, sample_stream
from pipelines.run.config import ComputeConfig, PretrainConfig
from pipelines.training.pretrain import pretrain
from pipelines.training.timing import PHASES

WORKLOAD = "ViT-S/16, 224 px"
IMAGES = 160
FLOAT = 4
BLOCK = 32


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=os.cpu_count() or 1):
        images = make_photographs(Path(folder) / "images", IMAGES, 348, 348)
        prepare(PrepareConfig(source=str(images), destination=f"{folder}/prepared"))
        runs = [
            measure(config_for(Path(folder), workers, number), workers)
            for number in range(arguments.rounds)
            for workers in (1, 2)
        ]
        stream = measure_stream(Path(folder), arguments.rounds)
    rows = [summary([run for run in runs if run["workers"] == workers]) for workers in (1, 2)]
    write_results(arguments.out, [*rows, stream])
    print(table(rows))
    print("a pair of views: {stored_per_pair:.0f} bytes in the object store".format(**stream))
    print("a stream that draws nothing: {median:.0f} blocks a second".format(**stream["blocks_per_second"]))


def config_for(folder: Path, workers: int, number: int) -> PretrainConfig:
    config = config_of(WORKLOAD, folder, number)
    return replace(config, name=f"{workers}-workers-{number}", compute=ComputeConfig(workers=workers))


def measure(config: PretrainConfig, workers: int) -> dict[str, Any]:
    """Run, and return {workers, images_per_second, sent, needed, phases}; bytes and seconds a step."""
    with Traffic() as traffic:
        result = pretrain(config)
    times, _ = curve(result, "loss")
    steps = len(times) - 1
    _, sent = traffic.between(times[0], times[-1])
    return {
        "workers": workers,
        "images_per_second": steps * config.optim.batch_size / (times[-1] - times[0]),
        "sent": sent / steps,
        "needed": sum(bytes_needed(config, workers).values()),
        "peak_object_store": traffic.peak,
        **{phase: statistics.fmean(curve(result, f"time/{phase}")[1][1:]) for phase in PHASES},
    }


def measure_stream(folder: Path, rounds: int) -> dict[str, Any]:
    """Return {stored_per_pair, blocks_per_second, rows_per_block} of streams for one worker."""
    config = config_of(WORKLOAD, folder, 0)
    count = 80
    with Traffic() as traffic:
        for _ in stream_batches(Path(config.data.images), 16, count, config.views, config.encoder.image_size):
            pass
    created = traffic.samples[-1].created - traffic.samples[0].created
    blocks = [blocks_per_second() for _ in range(rounds + 1)][1:]
    return {"stored_per_pair": created / (16 * count), "blocks_per_second": spread(blocks), "rows_per_block": BLOCK}


def blocks_per_second(count: int = 1000) -> float:
    """Return how many blocks of samples Ray Data hands to one worker where drawing them costs nothing."""
    draw = NothingToDraw(SampleOrder(0, count * BLOCK, BLOCK))
    (shard,) = sample_stream(draw, 0, count, [1]).streaming_split(1, equal=True)
    batches = iter(shard.iter_batches(batch_size=BLOCK))
    for _ in range(20):
        next(batches)
    started = time.perf_counter()
    rest = sum(1 for _ in batches)
    return rest / (time.perf_counter() - started)


class NothingToDraw(Draw):
    """A task that hands sample numbers on."""

    sample_bytes = 8

    def __init__(self, order: SampleOrder) -> None:
        self.order = order

    def __call__(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        return {"sample": samples}


def bytes_needed(config: PretrainConfig, workers: int) -> dict[str, float]:
    """Return the bytes that all workers together must send in a step, by what they hold.

    A ring all-reduce of n bytes over W workers sends 2 (W - 1) n in all, an all-gather of n bytes from each
    (W - 1) W n.
    """
    model = LoDisc(config.encoder, config.model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    passes = 3 if config.model.local_weight else 2  # through a projector: base, momentum, momentum's local view
    statistics_of = {name: norm_channels(getattr(model, name)) for name in ("projector", "predictor")}
    # Of both views: mean and variance forwards, and the gradients of both backwards on the base side.
    norms = 2 * (2 * passes * statistics_of["projector"] + 2 * statistics_of["predictor"])
    norms += 2 * 2 * (statistics_of["projector"] + statistics_of["predictor"])
    keys = 2 * (2 if config.model.local_weight else 1) * config.optim.batch_size // workers * config.model.output_dim
    ring = 2 * (workers - 1)
    return {
        "gradients": float(ring * trained * FLOAT),
        "batch norm": float(ring * norms * FLOAT),
        "keys": float((workers - 1) * workers * keys * FLOAT),
    }


def norm_channels(head: nn.Module) -> int:
    return sum(module.num_features for module in head.modules() if isinstance(module, GlobalBatchNorm1d))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the spread of each figure over the runs of one number of workers."""
    return {name: runs[0][name] if name == "workers" else spread([run[name] for run in runs]) for name in runs[0]}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    header = ("workers", "images/s (min-max)", "loopback, MB a step", "needed, MB", *PHASES)
    return markdown_table(
        header,
        [
            (
                row["workers"],
                "{median:.2f} ({min:.2f}-{max:.2f})".format(**row["images_per_second"]),
                *(f"{row[name]['median'] / 1e6:.1f}" for name in ("sent", "needed")),
                *(f"{row[phase]['median']:.3f} s" for phase in PHASES),
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
