"""Views of images to score an encoder on, decoded once and held in the object store."""

from __future__ import annotations

import math
import zlib
from functools import partial

import numpy as np
import pyarrow as pa
import ray
import ray.data

from lodisc.config import ViewConfig
from lodisc.views import TwoViews, eval_view
from pipelines.data.decode import decode_image, load_image, open_image, upright_size
from pipelines.data.samples import ImageStore, seed_of


def scored_views(store: ImageStore, targets: np.ndarray, chosen: np.ndarray, image_size: int) -> ray.data.Dataset:
    """Return the evaluation views of the images `chosen` (n,) of a store, held in the object store.

    Rows are {view, target}: uint8 (3, H, W), and the image's number in `targets` (images,) int64.
    """

    def draw(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = store.read(batch["index"])
        views = [eval_view(decode_image(data), image_size) for data in images]
        return {"view": np.stack(views), "target": targets[batch["index"]]}

    indices = ray.data.from_arrow(pa.table({"index": chosen})).repartition(math.ceil(len(chosen) / 128))
    return indices.map_batches(draw, batch_size=None).materialize()


def at_most(dataset: ray.data.Dataset, limit: int, seed: int) -> ray.data.Dataset:
    """Return a materialised dataset, or `limit` of its rows, drawn by `seed`, where it has more."""
    count = dataset.count()
    if count <= limit:
        return dataset
    chosen = np.sort(np.random.default_rng([seed, count]).choice(count, limit, replace=False))
    table = pa.concat_tables(ray.get(dataset.to_arrow_refs())).take(chosen)
    return ray.data.from_arrow(table).repartition(max(1, limit // 128))


def eval_images(
    dataset: ray.data.Dataset, views: ViewConfig, image_size: int, limit: int, seed: int
) -> ray.data.Dataset:
    """Return at most `limit` images, drawn by `seed`, decoded once and held in the object store.

    Rows are {image, view, path, label, coarse}: the evaluation view and a random one, uint8 (3, H, W).
    """
    dataset = at_most(dataset, limit, seed)
    two_views = TwoViews(views, image_size)

    def view(row: dict) -> dict:
        data = row.pop("bytes")
        opened = open_image(data)
        drawn, _ = two_views(upright_size(opened), partial(load_image, opened), seed_of(seed, zlib.crc32(data)))
        return {**row, "image": eval_view(decode_image(data), image_size), "view": drawn}

    dataset.context.execution_options.preserve_order = True
    return dataset.map(view).materialize()
