"""Feed training: an ordered stream of augmented views, drawn from the encoded images of a run's samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import cv2
import numpy as np
import psutil
import ray
import ray.data

from lodisc.views import CropAndFlip, TwoViews
from pipelines.data.decode import load_image, open_image, upright_size
from pipelines.data.samples import ImageStore, SampleOrder, seed_of
from pipelines.run.nodes import ON_INGEST_NODES

MAX_CHUNK = 32
# About a second of work: Ray Data looks every 0.1 s which tasks have ended, and short ones leave CPUs idle until then.
SAMPLES_PER_TASK = 512
# A worker that trains on this machine's CPUs goes first (`pipelines/training/placement.py`): Ray gives its processes a
# niceness of 15, and only a higher one may anybody set.
NICENESS = 19


class Draw:
    """The task that turns a block of sample numbers into a block of views.

    Args:
        store: the images.
        order: which of them each sample shows.
        view: draws one or two views of an image.
        labels: what else is known of each image, by name: arrays (images, ...) in the store's order.
    """

    def __init__(
        self,
        store: ImageStore,
        order: SampleOrder,
        view: TwoViews | CropAndFlip,
        labels: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.store, self.order, self.view, self.labels = store, order, view, labels or {}

    @property
    def names(self) -> tuple[str, ...]:
        return ("view1", "view2") if isinstance(self.view, TwoViews) else ("view",)

    @property
    def sample_bytes(self) -> int:
        """Return the size of a row."""
        return len(self.names) * 3 * self.view.image_size**2

    def __call__(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """Map sample numbers (n,) to `sample`, uint8 `view1` and `view2`, or `view`, (n, 3, H, W), and the labels."""
        indices = self.order.image_of(samples)
        images = self.store.read(indices)
        _give_way()
        seeds = [seed_of(self.order.seed, int(sample)) for sample in samples]
        drawn = [self._draw(data, seed) for data, seed in zip(images, seeds, strict=True)]
        views = {name: np.stack(column) for name, column in zip(self.names, zip(*drawn, strict=True), strict=True)}
        return {"sample": samples, **views, **{name: column[indices] for name, column in self.labels.items()}}

    def _draw(self, data: bytes, seed: int) -> tuple[np.ndarray, ...]:
        image = open_image(data)
        drawn = self.view(upright_size(image), partial(load_image, image), seed)
        return drawn if isinstance(drawn, tuple) else (drawn,)


def _give_way() -> None:
    """Draw on one core, and after whoever trains."""
    # One task has one core: OpenCV would start a thread for every core of the machine.
    cv2.setNumThreads(0)
    with suppress(OSError, psutil.Error):  # Where the system refuses, views are drawn all the same.
        process = psutil.Process()
        process.nice(max(process.nice(), NICENESS))


def sample_stream(draw: Draw, start_step: int, total_steps: int, counts: Sequence[int]) -> ray.data.Dataset:
    """Return the samples of steps start_step to total_steps as a lazy dataset, for `streaming_split`.

    Every block is a chunk of samples, a divisor of a worker's share of the batch. Ray deals ordered blocks of equal
    size to the workers in turn, so each step's blocks are together that step's global batch.

    Args:
        draw: what a sample shows.
        start_step, total_steps: of the run.
        counts: of workers that may share the stream; each divides the batch.
    """
    batch_size = draw.order.batch_size
    chunk = _largest_divisor(batch_size // math.lcm(*counts), MAX_CHUNK)
    first, count = start_step * batch_size, (total_steps - start_step) * batch_size
    chunks = ray.data.range(count // chunk, override_num_blocks=math.ceil(count / SAMPLES_PER_TASK))
    # A task hands each chunk on as soon as it is drawn: what it returns at a time is a block if it is no smaller.
    chunks.context.target_max_block_size = chunk * draw.sample_bytes
    return chunks.map_batches(
        lambda batch: draw(first + int(batch["id"][0]) * chunk + np.arange(chunk)), batch_size=1, **ON_INGEST_NODES
    )


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
