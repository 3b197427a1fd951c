"""Embeddings on disk: a folder of Parquet files, and beside them what they were made of and with."""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.data.sources import open_filesystem
from pipelines.data.verify import SetAside
from pipelines.evaluation.features import matrix

# Those who read a folder of Parquet files pass over files with a leading underscore.
ABOUT = "_embeddings.json"
PARTIAL = "_partial-"
GROUP_BYTES = 32 * 2**20  # of a row group, which is what a writer holds at a time
# What makes embeddings what they are, and the field that says where it lay.
COMPARED = {"weights": "checkpoint", "fingerprint": "images", "dtype": None, "patch_tokens": None, "shard_images": None}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What embeddings are made with and of.

    Attributes:
        checkpoint: folder of the encoder's checkpoint, an absolute path or URI.
        step: of the checkpoint.
        weights: `weights_fingerprint` of the encoder.
        encoder: its `EncoderConfig`.
        images: the source as the user named it.
        fingerprint: of the source's names and sizes, see `fingerprint` in `pipelines/data/sources.py`.
        dtype: "float32" or "float16".
        patch_tokens: whether the patches' tokens are there too.
        shard_images: rows of a file; the last one may have fewer.
    """

    checkpoint: str
    step: int
    weights: str
    encoder: dict[str, Any]
    images: str
    fingerprint: str
    dtype: str
    patch_tokens: bool
    shard_images: int

    def differences(self, now: Origin) -> list[str]:
        """Say what makes embeddings of the origin `now` other ones than those of this."""
        return [
            f"{place or name} was {self._said(name, place)}, is {now._said(name, place)}"
            for name, place in COMPARED.items()
            if getattr(self, name) != getattr(now, name)
        ]

    def _said(self, name: str, place: str | None) -> str:
        value = getattr(self, name)
        return f"{getattr(self, place)} ({value})" if place else repr(value)


@dataclass(frozen=True)
class About:
    """What a folder of embeddings holds once it is finished.

    Attributes:
        origin: what they are made with and of.
        count: rows of all files.
        content: hash of the usable images and their labels, in their order.
        set_aside: images that could not be used, and why.
    """

    origin: Origin
    count: int
    content: str
    set_aside: list[SetAside]

    @property
    def shards(self) -> int:
        """How many files hold all rows."""
        return -(-self.count // self.origin.shard_images)

    def rows_of(self, shard: int) -> int:
        """How many rows file number `shard` has."""
        return min(self.origin.shard_images, self.count - shard * self.origin.shard_images)


@dataclass(frozen=True)
class EmbeddingFolder:
    """A folder of embeddings, finished or not.

    Attributes:
        text: as the user wrote it.
        filesystem: that holds it.
        path: on that file system.
    """

    text: str
    filesystem: fs.FileSystem
    path: str

    @classmethod
    def at(cls, text: str) -> EmbeddingFolder:
        """Return the folder at a local path or URI, whether it exists or not."""
        return cls(text, *open_filesystem(text))

    def names(self) -> set[str]:
        """Return the names of what is in the folder; none where there is no folder."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name for info in found}

    def about(self) -> About | None:
        """Return what the folder is to hold; None where nothing was written yet.

        Raises:
            ValueError: it cannot be read.
        """
        if ABOUT not in self.names():
            return None
        with self.filesystem.open_input_stream(self._at(ABOUT)) as stream:
            data = stream.read()
        try:
            content = json.loads(data)
            set_aside = [SetAside(**item) for item in content["set_aside"]]
            return About(Origin(**content["origin"]), content["count"], content["content"], set_aside)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.text}: {ABOUT} is damaged or of another release ({error}); choose another folder"
            ) from error

    def write_about(self, about: About) -> None:
        with self.whole_file(ABOUT) as stream:
            stream.write(json.dumps(asdict(about), indent=2, ensure_ascii=False).encode())

    def missing(self, about: About) -> list[int]:
        """Return the numbers of the files that are not there yet."""
        there = self.names()
        return [number for number in range(about.shards) if shard_name(number) not in there]

    def is_foreign(self) -> bool:
        """Whether there are files in the folder, but not those of embeddings."""
        names = {name for name in self.names() if not name.startswith(PARTIAL)}
        return bool(names) and ABOUT not in names

    def write_shard(self, number: int, schema: pa.Schema, groups: Iterable[pa.Table], rows: int) -> None:
        """Write file `number`, of `rows` rows, as a row group of each table. One table at a time is held.

        Raises:
            ValueError: a number is not finite.
        """
        written = 0
        with (
            self.whole_file(shard_name(number)) as stream,
            pq.ParquetWriter(stream, schema, use_dictionary=["label", "coarse"]) as writer,
        ):
            for table in groups:
                refuse_not_finite(table)
                writer.write_table(table.cast(schema))
                written += len(table)
            assert written == rows, f"{shard_name(number)} should have {rows} rows, has {written}"

    @contextmanager
    def whole_file(self, name: str) -> Iterator[pa.NativeFile]:
        """Open a file for writing that bears its name only once it is whole."""
        self.filesystem.create_dir(self.path)
        partial = self._at(f"{PARTIAL}{uuid.uuid4().hex}")
        try:
            with self.filesystem.open_output_stream(partial) as stream:
                yield stream
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(partial)
            raise
        self.filesystem.move(partial, self._at(name))

    def delete_partial(self) -> None:
        """Delete files that a killed process left half written."""
        for name in self.names():
            if name.startswith(PARTIAL):
                self.filesystem.delete_file(self._at(name))

    def dataset(self, about: About) -> pyarrow.dataset.Dataset:
        """Return all rows, in the order of the source, to be read lazily."""
        files = [self._at(shard_name(number)) for number in range(about.shards)]
        return pyarrow.dataset.dataset(files, filesystem=self.filesystem, format="parquet")

    def _at(self, name: str) -> str:
        return posixpath.join(self.path, name)


def shard_name(number: int) -> str:
    """Return the name of file number `number`; in the order of their names the files are in the order of the source."""
    return f"shard-{number:05d}.parquet"


def embedding_schema(origin: Origin, width: int, grid: tuple[int, int]) -> pa.Schema:
    """Return the schema of the files, whose metadata say under `lodisc` what the numbers are.

    Args:
        origin: what the embeddings are made with and of.
        width: D, of a token.
        grid: (rows, columns) of patches; patch tokens come row by row.
    """
    number, patches = pa.from_numpy_dtype(origin.dtype), grid[0] * grid[1]
    about: dict[str, Any] = {"checkpoint": origin.checkpoint, "step": origin.step, "weights": origin.weights}
    about["embedding"] = {"shape": [width]}
    fields = [("path", pa.string()), ("label", pa.string()), ("coarse", pa.string())]
    fields.append(("embedding", pa.list_(number, width)))
    if origin.patch_tokens:
        about["patch_tokens"] = {"shape": [patches, width], "grid": list(grid)}
        fields.append(("patch_tokens", pa.list_(number, patches * width)))
    return pa.schema(fields, metadata={"lodisc": json.dumps(about)})


def rows_per_group(shard_images: int, schema: pa.Schema) -> int:
    """Return the rows of a row group: a file's, or a half, a quarter, ... of them where those are too much to hold."""
    lists = [kind for kind in schema.types if pa.types.is_fixed_size_list(kind)]
    row_bytes = sum(kind.list_size * kind.value_type.bit_width // 8 for kind in lists)
    rows = shard_images
    while rows * row_bytes > GROUP_BYTES and rows % 2 == 0:
        rows //= 2
    return rows


def refuse_not_finite(table: pa.Table) -> None:
    """Raise ValueError where an embedding or patch token is not finite, naming the image."""
    for name in {"embedding", "patch_tokens"} & set(table.column_names):
        values = matrix(table[name])
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            path = table["path"][int(finite.argmin())]
            cure = "keep float32" if values.dtype == np.float16 else "the encoder has diverged; take another checkpoint"
            raise ValueError(f"{path}: its {name} is not finite in {values.dtype}: {cure}")
