"""Time the input pipeline beside a plain DataLoader: from JPEG files to normalised pairs of views, on the same cores.

    python -m benchmarks.ingest --out benchmarks/results/ingest.json

The DataLoader has a worker a core, reads an image folder, and applies torchvision's transforms of PIL images twice, as
MoCo v3 and LoDisc do. Ours reads prepared Parquet and is consumed as a training worker consumes it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.photographs import make_photographs
from benchmarks.report import markdown_table, write_results
from benchmarks.timing import in_new_process, spread
from benchmarks.torchvision_views import torchvision_views
from benchmarks.traffic import Traffic
from cluster.connect import connect
from lodisc.config import ViewConfig
from lodisc.normalise import normalise
from lodisc.views import IMAGENET_MEAN, IMAGENET_STD, TwoViews
from pipelines.data.options import PrepareConfig
from pipelines.data.prepare import prepare
from pipelines.data.samples import ImageStore, SampleOrder
from pipelines.data.stream import Draw, sample_stream
from pipelines.data.verify import usable_images

Pair = tuple[Tensor, Tensor]
# Seconds to the first batch, seconds a batch, and the most bytes that Ray's object store held.
Times = tuple[float, float, int]
SIZES = ((348, 348), (1632, 1224))
IMAGE_SIZE = 224


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs in class folders, instead of made photographs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=100, help="of which the last half is timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    rows = []
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=cores):
        for images in [arguments.images] if arguments.images else made_folders(Path(folder)):
            rows += measure(images, Path(folder) / f"prepared-{images.name}", cores, arguments)
            print(table(rows[-2:]), flush=True)
    if arguments.out:
        write_results(arguments.out, rows)


def measure(images: Path, prepared: Path, cores: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time both ways in turn and return a row each."""
    prepare(PrepareConfig(source=str(images), destination=str(prepared)))
    count, batch = arguments.batches, arguments.batch
    contenders: dict[str, Callable[[], Times]] = {
        # Where no Ray is: DataLoader forks, which a process with Ray's threads may not survive.
        "DataLoader": lambda: in_new_process(time_dataloader, images, batch, count, cores),
        "LoDisc": lambda: time_stream(prepared, batch, count),
    }
    times: dict[str, list[Times]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, run in contenders.items():
            times[name].append(run())
    rates = {name: [batch / each for _, each, _ in values] for name, values in times.items()}
    with Image.open(next(images.rglob("*.jpg"))) as photograph:
        size = photograph.size
    plain = spread(rates["DataLoader"])["median"]
    return [
        {
            "images": images.name,
            "pixels": size,
            "contender": name,
            "images_per_second": spread(rates[name]),
            "speedup": spread(rates[name])["median"] / plain,
            "first_batch_seconds": spread([first for first, _, _ in times[name]]),
            "peak_object_store_mb": max(peak for _, _, peak in times[name]) / 1e6,
        }
        for name in contenders
    ]


def time_dataloader(images: Path, batch: int, count: int, workers: int) -> Times:
    return (*drain(lambda: dataloader_batches(images, batch, count, workers), count), 0)


def time_stream(prepared: Path, batch: int, count: int) -> Times:
    with Traffic() as traffic:
        first, each = drain(lambda: stream_batches(prepared, batch, count, ViewConfig(), IMAGE_SIZE), count)
    return first, each, traffic.peak


def drain(start: Callable[[], Iterator[object]], count: int) -> tuple[float, float]:
    """Return the seconds to the first of `count` batches, and those of a batch in the last half of them.

    In the first half processes still start, and both pipelines fill what they hold ahead.
    """
    started = time.perf_counter()
    seen = [time.perf_counter() for _ in start()]
    assert len(seen) == count
    half = count // 2
    return seen[0] - started, (seen[-1] - seen[half - 1]) / (count - half)


def stream_batches(prepared: Path, batch: int, count: int, views: ViewConfig, image_size: int) -> Iterator[Pair]:
    """Yield `count` normalised batches as a training worker gets them."""
    store = ImageStore.from_dataset(usable_images(str(prepared)))
    draw = Draw(store, SampleOrder(0, len(store), batch), TwoViews(views, image_size))
    stream = sample_stream(draw, 0, count, [1])
    stream.context.execution_options.preserve_order = True
    (shard,) = stream.streaming_split(1, equal=True)
    for drawn in shard.iter_torch_batches(batch_size=batch, device="cpu", prefetch_batches=2):
        yield normalise(drawn["view1"]), normalise(drawn["view2"])


def dataloader_batches(images: Path, batch: int, count: int, workers: int) -> Iterator[Pair]:
    """Yield `count` normalised batches of torch's DataLoader."""
    normalised = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    first, second = (v2.Compose([view, *normalised]) for view in torchvision_views(ViewConfig(), IMAGE_SIZE))
    dataset = ImageFolder(str(images), transform=lambda image: (first(image), second(image)))
    chosen = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=count * batch)
    context = "fork" if workers else None
    loader = DataLoader(dataset, batch, sampler=chosen, num_workers=workers, multiprocessing_context=context)
    for (view1, view2), _ in islice(loader, count):
        yield view1, view2


def made_folders(folder: Path) -> Iterator[Path]:
    """Yield a folder of made photographs for each size."""
    for width, height in SIZES:
        yield make_photographs(folder / f"{width}x{height}", 200, width, height)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    header = ("photographs", "pipeline", "images/s (min-max)", "x DataLoader", "first batch, s", "object store, MB")
    return markdown_table(
        header,
        [
            (
                "{} x {}".format(*row["pixels"]),
                row["contender"],
                "{median:.0f} ({min:.0f}-{max:.0f})".format(**row["images_per_second"]),
                f"{row['speedup']:.2f}",
                f"{row['first_batch_seconds']['median']:.1f}",
                f"{row['peak_object_store_mb']:.0f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
