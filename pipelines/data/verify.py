"""Separate the images that can be used from those that cannot, naming each of the latter and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipelines.data.decode import ImageError, decode_image
from pipelines.data.sources import ROW, is_prepared, read_images

REASON = pa.field("reason", pa.string())


@dataclass(frozen=True)
class SetAside:
    """An image that cannot be used."""

    path: str
    reason: str


def load_verified(source: str) -> tuple[ray.data.Dataset, list[SetAside]]:
    """Read a source into the object store, and decode every image once to see that it can be.

    What `lodisc prepare` wrote was checked then and is not checked again.

    Returns:
        The usable rows {bytes, path, label, coarse}, materialised, in the source's order; and what was set aside.

    Raises:
        ValueError: no image is usable.
    """
    images = read_images(source)
    if is_prepared(source):
        return images.materialize(), []
    return split_usable(source, images, decodes)


def decodes(data: bytes) -> bytes:
    """Return `data` as it is, if it decodes."""
    decode_image(data)
    return data


def split_usable(
    source: str, images: ray.data.Dataset, check: Callable[[bytes], bytes]
) -> tuple[ray.data.Dataset, list[SetAside]]:
    """Replace every image's bytes by what `check` makes of them, and set aside those that it refuses.

    Args:
        source: its name, for messages.
        images: rows {bytes, path, label, coarse}.
        check: raises ImageError for an image that cannot be used.

    Raises:
        ValueError: none can be used.
    """
    checked = images.map_batches(_Checker(check), batch_format="pyarrow", batch_size=64).materialize()
    bad = checked.map_batches(_bad_rows, batch_format="pyarrow", batch_size=None).take_all()
    set_aside = [SetAside(row["path"], row["reason"]) for row in bad]
    if len(set_aside) == checked.count():
        reasons = "; ".join(f"{item.path}: {item.reason}" for item in set_aside[:3])
        raise ValueError(f"{source}: none of its {len(set_aside)} images can be used ({reasons})")
    good = checked.map_batches(_good_rows, batch_format="pyarrow", batch_size=None)
    return good.materialize(), set_aside


def usable_images(source: str) -> ray.data.Dataset:
    """Return `load_verified`'s rows, naming on the terminal every image that was set aside and why."""
    images, set_aside = load_verified(source)
    say_set_aside(source, images.count(), set_aside)
    return images


def say_set_aside(source: str, used: int, set_aside: list[SetAside]) -> None:
    """Print what was set aside and why, one line an image, then the counts."""
    for item in set_aside:
        print(f"set aside: {item.path}: {item.reason}", flush=True)
    print(f"{source}: {used} images, {len(set_aside)} set aside", flush=True)


@dataclass(frozen=True)
class _Checker:
    check: Callable[[bytes], bytes]

    def __call__(self, rows: pa.Table) -> pa.Table:
        results = [self._result(data) for data in rows["bytes"].to_pylist()]
        data, reasons = zip(*results, strict=True) if results else ((), ())
        columns = [pa.array(data, pa.binary()), *rows.select(ROW.names[1:]), pa.array(reasons, pa.string())]
        return pa.table(columns, schema=ROW.append(REASON))

    def _result(self, data: bytes | None) -> tuple[bytes | None, str | None]:
        if data is None:
            return None, "cannot be read"
        try:
            return self.check(data), None
        except ImageError as error:
            return None, str(error)


def _bad_rows(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.is_valid(rows["reason"])).select(["path", "reason"])


def _good_rows(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.is_null(rows["reason"])).select(ROW.names)
