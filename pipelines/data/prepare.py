"""Check a source once and keep it as Parquet shards, ready for any number of runs."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq
import ray.data
from PIL import Image
from pyarrow import fs

from pipelines.data.decode import ImageError, decode_image, open_image
from pipelines.data.options import PrepareConfig
from pipelines.data.sources import BLOCK_BYTES, PREPARED, fingerprint, open_filesystem, read_images
from pipelines.data.verify import SetAside, say_set_aside, split_usable

UPRIGHT = 1
ORIENTATION = 0x0112  # EXIF tag
JPEG_SIDE = 65_500  # the most that libjpeg writes


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    Attributes:
        source: as the user named it.
        fingerprint: of the source.
        images: how many were kept.
        megabytes: of encoded images.
        classes: images by fine label; empty without labels.
        set_aside: what could not be used, and why.
    """

    source: str
    fingerprint: str
    images: int
    megabytes: float
    classes: dict[str, int]
    set_aside: list[SetAside]


def prepare(config: PrepareConfig) -> PrepareReport:
    """Write the usable images of a source as Parquet (bytes, path, label, coarse) with a report.json beside them.

    JPEGs that are RGB, upright and small enough keep their bytes; everything else is encoded anew. Ray must be running.

    Raises:
        ValueError: no image of the source can be used.
    """
    source_fingerprint = fingerprint(config.source)
    images, set_aside = split_usable(config.source, read_images(config.source), Standardise(config.max_side))
    filesystem, path = open_filesystem(config.destination)
    _write_shards(images, filesystem, path, config.shard_mb)
    report = PrepareReport(
        source=config.source,
        fingerprint=source_fingerprint,
        images=images.count(),
        megabytes=round(images.size_bytes() / 1e6, 1),
        classes=_count_labels(images),
        set_aside=set_aside,
    )
    _write_report(filesystem, path, report)
    say_set_aside(config.source, report.images, set_aside)
    classes = f" in {len(report.classes)} classes" if report.classes else ", unlabelled"
    size = f"{report.megabytes} MB"
    print(f"wrote {report.images} images{classes}, {size}, to {config.destination}; details in {PREPARED}", flush=True)
    return report


@dataclass(frozen=True)
class Standardise:
    """Turns an encoded image into the JPEG that training reads."""

    max_side: int | None

    def __call__(self, data: bytes) -> bytes:
        """Return `data` itself where it will do, else a new JPEG.

        Raises:
            ImageError: see `decode_image`.
        """
        original = open_image(data)
        image = decode_image(data)
        too_large = self.max_side is not None and min(image.size) > self.max_side
        upright = original.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT
        if original.format == "JPEG" and original.mode == "RGB" and upright and not too_large:
            return data
        if too_large:
            scale = (self.max_side or 0) / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS)
        if max(image.size) > JPEG_SIDE:
            raise ImageError(f"{image.width} x {image.height} is too long for a JPEG")
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=92)
        return stream.getvalue()


def _write_shards(images: ray.data.Dataset, filesystem: fs.FileSystem, path: str, shard_mb: int) -> None:
    """Write `shard-00000.parquet ...`, whose names and rows keep the images' order.

    Ray's own `write_parquet` promises no order within a file, and on a cluster writes "local" files to every node.
    """
    bytes_per_row = images.size_bytes() / images.count()
    rows_per_shard = max(1, round(shard_mb * 1e6 / bytes_per_row))
    rows_per_group = max(1, round(BLOCK_BYTES / bytes_per_row))  # what a reader holds at a time
    filesystem.create_dir(path)
    shards = images.iter_batches(batch_size=rows_per_shard, batch_format="pyarrow")
    for number, shard in enumerate(shards):
        with filesystem.open_output_stream(f"{path}/shard-{number:05d}.parquet") as stream:
            pq.write_table(shard, stream, row_group_size=rows_per_group, use_dictionary=["label", "coarse"])


def _count_labels(images: ray.data.Dataset) -> dict[str, int]:
    labels = Counter(row["label"] for row in images.select_columns(["label"]).iter_rows())
    return {label: labels[label] for label in sorted(label for label in labels if label is not None)}


def _write_report(filesystem: fs.FileSystem, path: str, report: PrepareReport) -> None:
    content: dict[str, Any] = {"prepared_by": "lodisc", **asdict(report)}
    with filesystem.open_output_stream(f"{path}/{PREPARED}") as stream:
        stream.write(json.dumps(content, indent=2, ensure_ascii=False).encode())
