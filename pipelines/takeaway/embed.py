"""Embed every image of a source and keep the embeddings as Parquet files; what is there already is not done again."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import islice
from typing import Any

import pyarrow as pa
import ray.data
import torch

from lodisc.encoder import Encoder
from pipelines.data.sources import ROW, fingerprint
from pipelines.data.verify import load_verified, say_set_aside
from pipelines.evaluation.features import embed_images
from pipelines.run.checkpoint import checkpoint_location, load_encoder, weights_fingerprint
from pipelines.run.progress import Meter, terminal_style
from pipelines.takeaway.embeddings import ABOUT, About, EmbeddingFolder, Origin, embedding_schema, rows_per_group
from pipelines.takeaway.options import EmbedConfig


def embed(config: EmbedConfig) -> About:
    """Write the embeddings of a source's usable images, {path, label, coarse, embedding}, in the source's order.

    Ray must be running. This process holds a row group at a time, never all embeddings.

    Raises:
        ValueError: no image can be used; the folder holds embeddings of another encoder, of other images or in another
            form; or an embedding is not finite.
    """
    encoder, state = load_encoder(config.checkpoint)
    folder, origin = EmbeddingFolder.at(config.out), _origin(config, encoder, state)
    before = folder.about()
    if before is not None:
        _refuse_others(config.out, before.origin.differences(origin))
        if not folder.missing(before):
            print(f"{config.out} is finished: all {before.count} images are embedded; nothing to do", flush=True)
            return before
    images, set_aside = load_verified(config.images)
    say_set_aside(config.images, images.count(), set_aside)
    about = About(origin, images.count(), content_hash(images), set_aside)
    if before is None:
        folder.write_about(about)
    elif about.content != before.content:
        _refuse_others(config.out, [f"the usable images were {_said(before)}, are {_said(about)}"])
    folder.delete_partial()
    _write_missing(config, folder, about, encoder, images)
    size = f"{encoder.feature_dim} numbers each ({config.dtype})"
    print(f"wrote the embeddings of {about.count} images, {size}, to {config.out}; details in {ABOUT}", flush=True)
    return about


def _origin(config: EmbedConfig, encoder: Encoder, state: dict[str, Any]) -> Origin:
    return Origin(
        checkpoint=checkpoint_location(config.checkpoint),
        step=state["step"],
        weights=weights_fingerprint(encoder),
        encoder=state["config"]["encoder"],
        images=config.images,
        fingerprint=fingerprint(config.images),
        dtype=config.dtype,
        patch_tokens=config.patch_tokens,
        shard_images=config.shard_images,
    )


def _said(about: About) -> str:
    return f"{about.count} with contents {about.content}"


def _refuse_others(out: str, differences: list[str]) -> None:
    if differences:
        raise ValueError(f"out: {out} holds other embeddings; choose another folder ({'; '.join(differences)})")


def content_hash(images: ray.data.Dataset) -> str:
    """Return a short hash of all images, paths and labels: files of a list may change where the list does not."""
    digests = images.map_batches(_digests, batch_format="pyarrow", batch_size=None)
    digest = hashlib.sha256()
    for rows in digests.iter_batches(batch_size=None):
        digest.update(b"".join(rows["digest"]))
    return digest.hexdigest()[:16]


def _digests(rows: pa.Table) -> pa.Table:
    columns = (column.to_pylist() for column in rows.select(ROW.names))
    digests = [
        hashlib.blake2b(json.dumps(names).encode() + data, digest_size=16).digest()
        for data, *names in zip(*columns, strict=True)
    ]
    return pa.table({"digest": pa.array(digests, pa.binary())})


def _write_missing(
    config: EmbedConfig, folder: EmbeddingFolder, about: About, encoder: Encoder, images: ray.data.Dataset
) -> None:
    missing = folder.missing(about)
    if len(missing) < about.shards:
        there = about.shards - len(missing)
        print(f"{config.out}: {there} of {about.shards} files are there; continuing with the others", flush=True)
    schema = embedding_schema(about.origin, encoder.feature_dim, encoder.grid)
    embedded = embed_images(
        encoder,
        _rows_of(images, about, missing),
        about.origin.encoder["image_size"],
        config.batch_size,
        getattr(torch, config.dtype),
        config.patch_tokens,
    )
    group = rows_per_group(config.shard_images, schema)
    groups = iter(embedded.iter_batches(batch_size=group, batch_format="pyarrow"))
    done = about.count - sum(map(about.rows_of, missing))
    meter = Meter(about.count, "embedding", "image", done, terminal_style())
    for number in missing:
        rows = about.rows_of(number)
        folder.write_shard(number, schema, islice(groups, math.ceil(rows / group)), rows)
        done += rows
        meter.draw(done, "embedding", f"embedded {done}/{about.count} images")
    meter.close()


def _rows_of(images: ray.data.Dataset, about: About, shards: list[int]) -> ray.data.Dataset:
    """Return the images of some files, in order."""
    if len(shards) == about.shards:
        return images
    bounds = [number * about.origin.shard_images for number in range(1, about.shards)]
    parts = images.split_at_indices(bounds)
    # Not `union`, which mixes the rows of its parts.
    return ray.data.from_arrow_refs([block for number in shards for block in parts[number].to_arrow_refs()])
