"""Which image each sample of a run shows, the seed it is drawn by, and where its bytes are.

A run reads one stream of *samples*, numbered from 0 to the end of its last epoch. Which image sample n shows, and how
its views are drawn, is a function of (seed, n) alone. So a run resumes at any step by starting the stream there, and
the global batch of a step holds the same views however many workers share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import ray
import ray.data


@dataclass(frozen=True)
class ImageStore:
    """Encoded images in Ray's object store, for random access from any node.

    Attributes:
        blocks: references to Arrow tables with a `bytes` column.
        starts: (blocks + 1,) int64; block i holds images starts[i] to starts[i + 1].
    """

    blocks: list[ray.ObjectRef]
    starts: np.ndarray

    @classmethod
    def from_dataset(cls, dataset: ray.data.Dataset) -> ImageStore:
        """Hold a materialised dataset's rows, in its order."""
        bundles = list(dataset.iter_internal_ref_bundles())
        refs = [ref for bundle in bundles for ref in bundle.block_refs]
        sizes = [about.num_rows for bundle in bundles for about in bundle.metadata]
        return cls(refs, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yield the encoded bytes of the images at `indices` (n,), 0 <= index < len(self), in that order."""
        owners = np.searchsorted(self.starts, indices, side="right") - 1
        needed = np.unique(owners)
        tables = dict(zip(needed, ray.get([self.blocks[i] for i in needed]), strict=True))
        for index, owner in zip(indices, owners, strict=True):
            yield tables[owner]["bytes"][int(index - self.starts[owner])].as_py()


@dataclass(frozen=True)
class SampleOrder:
    """Which image each sample of a run shows: every epoch a fresh permutation, cut to whole batches.

    Attributes:
        seed: of the run.
        images: how many images there are.
        batch_size: the global batch.
    """

    seed: int
    images: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size

    def image_of(self, samples: np.ndarray) -> np.ndarray:
        """Return the image index (n,) int64 of each sample number (n,)."""
        epochs, places = np.divmod(samples, self.steps_per_epoch * self.batch_size)
        result = np.empty_like(samples)
        for epoch in np.unique(epochs):
            order = epoch_order(self.seed, int(epoch), self.images)
            result[epochs == epoch] = order[places[epochs == epoch]]
        return result


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """Return an epoch's permutation of the images. A process keeps the last two: a million images take 20 ms."""
    return np.random.default_rng([seed, epoch]).permutation(images)


def seed_of(*where: int) -> int:
    """Return a seed in 0..2**63 for a place named by non-negative integers, as (run seed, sample number).

    Places that differ in any number get unrelated seeds (numpy's SeedSequence hashes them).
    """
    return int(np.random.SeedSequence(where).generate_state(1, np.uint64)[0] >> np.uint64(1))
