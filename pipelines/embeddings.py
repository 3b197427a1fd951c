"""Embeddings on disk: a folder of Parquet files, and beside them what they were made of and with."""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset
from pyarrow import fs

from pipelines.sources import open_filesystem
from pipelines.verify import SetAside

# Those who read a folder of Parquet files pass over files with a leading underscore.
ABOUT = "_embeddings.json"
PARTIAL = "_partial-"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What embeddings are made with and of.

    Attributes:
        checkpoint: folder of the encoder's checkpoint, an absolute path or URI.
        step: of the checkpoint.
        weights: `weights_fingerprint` of the encoder.
        encoder: its `EncoderConfig`.
        images: the source as the user named it.
        fingerprint: of the source's names and sizes, see `fingerprint` in `pipelines/sources.py`.
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

    def differences(self, other: Origin) -> list[str]:
        """Say what makes the embeddings of `other` not those of this origin, a line each."""
        named = {
            "the encoder": (
                f"{self.weights} ({self.checkpoint}, step {self.step})",
                f"{other.weights} ({other.checkpoint}, step {other.step})",
                self.weights != other.weights,
            ),
            "the images": (
                f"{self.fingerprint} ({self.images})",
                f"{other.fingerprint} ({other.images})",
                self.fingerprint != other.fingerprint,
            ),
        }
        for name in ("dtype", "patch_tokens", "shard_images"):
            before, now = getattr(self, name), getattr(other, name)
            named[name] = (repr(before), repr(now), before != now)
        return [f"{name}: was {before}, is {now}" for name, (before, now, differs) in named.items() if differs]


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

    def sweep(self) -> None:
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
