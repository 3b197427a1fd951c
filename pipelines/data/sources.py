"""Read images from wherever users keep them, as rows {bytes, path, label, coarse}.

A source is `SRC` or `SRC@SPLIT`: a local path or a URI that pyarrow or fsspec knows (s3://, gs://, memory://). It is a
folder of images, a list file, a published layout (these have splits), Parquet files, or WebDataset tar shards.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from pyarrow import fs

from pipelines.data import layouts
from pipelines.data.layouts import OFFICIAL, Folder, official_layout

ROW = pa.schema([("bytes", pa.binary()), ("path", pa.string()), ("label", pa.string()), ("coarse", pa.string())])
PREPARED = "report.json"  # `lodisc prepare` writes it beside its shards when they are complete
FILES_PER_BLOCK = 64
BLOCK_BYTES = 16 * 2**20  # Ray's default of 128 MiB makes the first images wait for tens of seconds
IMAGE_COLUMNS = ("bytes", "image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "fine_label", "cls", "class")
COARSE_COLUMNS = ("coarse", "coarse_label")


@dataclass(frozen=True)
class Source:
    """A source that exists: where it is, and what kind of thing it is.

    Attributes:
        text: as the user wrote it.
        filesystem: that holds it.
        path: on that file system.
        split: of a published layout, else None.
        kind: "folder", "list", "parquet", "tar", or the name of a published layout.
        files: the shards of "parquet" and "tar", sorted; empty otherwise.
    """

    text: str
    filesystem: fs.FileSystem
    path: str
    split: str | None
    kind: str
    files: tuple[str, ...] = ()

    @property
    def folder(self) -> Folder:
        return Folder(self.filesystem, self.path)

    def contains(self, filesystem: fs.FileSystem, path: str) -> bool:
        """Whether a path lies in the source, so that files written there would become a part of it."""
        return f"{path}/".startswith(f"{self.path}/") and filesystem == self.filesystem

    @property
    def in_shards(self) -> bool:
        """Whether only reading the images tells which there are; otherwise `list_images` does."""
        return self.kind in ("parquet", "tar")


def find_source(text: str) -> Source:
    """Recognise a source, without reading any image.

    Raises:
        ValueError: there is nothing there, or the split is missing or unknown.
    """
    location, split = _without_split(text)
    filesystem, path = open_filesystem(location)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise ValueError(f"{text}: there is no such file or folder")
    if info.type == fs.FileType.File:
        kinds = {".parquet": "parquet", ".tar": "tar", ".txt": "list", ".csv": "list"}
        kind = kinds.get(posixpath.splitext(path)[1].lower())
        if kind is None:
            raise ValueError(f"{text}: expected a folder, a .parquet or .tar file, or a .txt or .csv list of images")
        files: tuple[str, ...] = (path,) if kind in ("parquet", "tar") else ()
    else:
        kind, files = _kind_of_folder(Folder(filesystem, path))
    splits = OFFICIAL[kind].splits if kind in OFFICIAL else ()
    if splits and split not in splits:
        raise ValueError(f"{text}: {kind} has splits; name one, as in {location}@{splits[0]} ({', '.join(splits)})")
    if split and not splits:
        raise ValueError(f"{text}: only published layouts have splits ({', '.join(OFFICIAL)}); drop @{split}")
    return Source(text, filesystem, path, split, kind, files)


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a local path or URI, and the path on it.

    Raises:
        ValueError: no such protocol, or its package is not installed.
    """
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).absolute())
    try:
        return fs.FileSystem.from_uri(location)
    except pa.ArrowInvalid:
        pass
    try:
        filesystem, path = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{location}: neither pyarrow nor fsspec can open it: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _without_split(text: str) -> tuple[str, str | None]:
    location, _, split = text.rpartition("@")
    # The @ of s3://user@host/... or of a folder's name is no split.
    if not location or "/" in split or ("://" not in text and Path(text).exists()):
        return text, None
    return location, split


def _kind_of_folder(folder: Folder) -> tuple[str, tuple[str, ...]]:
    official = official_layout(folder)
    if official:
        return official, ()
    found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=True))
    for kind in ("parquet", "tar"):
        files = tuple(sorted(info.path for info in found if info.path.endswith(f".{kind}")))
        if files:
            return kind, files
    return "folder", ()


def read_images(text: str) -> ray.data.Dataset:
    """Return a source's rows {bytes, path, label, coarse} in a fixed order, lazily. Ray must be running.

    `bytes` is null where a file cannot be read; labels are null where there are none.

    Raises:
        ValueError: see `find_source`; or the source lists no image, or its columns hold none.
    """
    source = find_source(text)
    if source.kind == "parquet":
        dataset = _read_parquet(source)
    elif source.kind == "tar":
        samples = ray.data.read_webdataset(list(source.files), filesystem=source.filesystem, decoder=None)
        dataset = samples.map_batches(_tar_rows, batch_format="pandas", batch_size=None)
    else:
        dataset = _read_listed(source)
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = BLOCK_BYTES
    return dataset


def is_prepared(text: str) -> bool:
    """Whether the source is what `lodisc prepare` wrote, so that its images are known to be good."""
    source = find_source(text)
    if source.kind != "parquet" or not source.folder.has(PREPARED):
        return False
    return bool(json.loads(source.folder.bytes(PREPARED)).get("prepared_by") == "lodisc")


def fingerprint(text: str) -> str:
    """Return a short hash that changes when the source's files do: their names and sizes, or a list's lines."""
    source = find_source(text)
    if source.kind == "list":
        listing = source.folder.bytes()
    else:
        infos = _files_of(source)
        listing = "\n".join(f"{posixpath.relpath(i.path, source.path)} {i.size}" for i in infos).encode()
    return hashlib.sha256(listing + (source.split or "").encode()).hexdigest()[:16]


def size_of(text: str) -> int:
    """Return the bytes of a source's encoded images, or of its shards.

    Raises:
        ValueError: there is no such source.
    """
    source = find_source(text)
    if source.kind != "list":
        return sum(info.size for info in _files_of(source))
    infos = source.filesystem.get_file_info(list_images(source)["path"].to_pylist())
    return sum(info.size or 0 for info in infos)


def _files_of(source: Source) -> list[fs.FileInfo]:
    if source.files:
        infos = source.filesystem.get_file_info(list(source.files))
    else:
        infos = source.filesystem.get_file_info(fs.FileSelector(source.path, recursive=True))
    return sorted((info for info in infos if info.type == fs.FileType.File), key=lambda info: info.path)


def list_images(source: Source) -> pa.Table:
    """Return path, label and coarse label of a source's images without reading them.

    Raises:
        ValueError: the source lists no image.
    """
    if source.kind == "list":
        parent = Folder(source.filesystem, posixpath.dirname(source.path))
        listing = layouts.list_file(parent, posixpath.basename(source.path))
    elif source.kind == "folder":
        listing = layouts.image_folder(source.folder)
    else:
        assert source.split is not None, "shards list nothing, and find_source requires a split of published layouts"
        listing = OFFICIAL[source.kind].read(source.folder, source.split)
    if len(listing) == 0:
        endings = " ".join(layouts.IMAGE_ENDINGS)
        raise ValueError(f"{source.text}: no images found (files ending in {endings})")
    return listing


def _read_listed(source: Source) -> ray.data.Dataset:
    listing = list_images(source)
    blocks = [listing.slice(start, FILES_PER_BLOCK) for start in range(0, len(listing), FILES_PER_BLOCK)]
    read = _FileReader(source.filesystem)
    return ray.data.from_arrow(blocks).map_batches(read, batch_format="pyarrow", batch_size=None)


@dataclass(frozen=True)
class _FileReader:
    """Adds the bytes of the files that a table lists."""

    filesystem: fs.FileSystem

    def __call__(self, listing: pa.Table) -> pa.Table:
        contents = [self._read(path) for path in listing["path"].to_pylist()]
        return pa.table([pa.array(contents, pa.binary()), *listing.select(["path", "label", "coarse"])], schema=ROW)

    def _read(self, path: str) -> bytes | None:
        try:
            with self.filesystem.open_input_stream(path) as stream:
                return stream.read()
        except OSError:
            return None


def _read_parquet(source: Source) -> ray.data.Dataset:
    with source.filesystem.open_input_file(source.files[0]) as file:
        schema = pq.read_schema(file)
    columns = _parquet_columns(schema, source.text)
    # Without partitioning, lest a folder named `label=...` replaces the column of that name.
    dataset = ray.data.read_parquet(list(source.files), filesystem=source.filesystem, partitioning=None)
    return dataset.select_columns(columns.used).map_batches(columns, batch_format="pyarrow", batch_size=None)


@dataclass(frozen=True)
class _ParquetColumns:
    """Turns a Parquet table's columns into rows.

    Attributes:
        image: column of encoded bytes, or of {bytes, path} structs as Hugging Face writes them.
        struct: whether it is such a struct.
        path, label, coarse: columns, where there are any.
        names: of integer classes, by column.
    """

    image: str
    struct: bool
    path: str | None
    label: str | None
    coarse: str | None
    names: dict[str, list[str]]

    @property
    def used(self) -> list[str]:
        return [column for column in (self.image, self.path, self.label, self.coarse) if column]

    def __call__(self, table: pa.Table) -> pa.Table:
        image = table[self.image]
        data = pc.struct_field(image, "bytes") if self.struct else image
        columns = [
            data.cast(pa.binary()),
            self._paths(table, pc.binary_length(data).to_pylist()),
            self._classes(table, self.label),
            self._classes(table, self.coarse),
        ]
        return pa.table(columns, schema=ROW)

    def _paths(self, table: pa.Table, sizes: list[int | None]) -> list[str]:
        if self.path:
            paths = table[self.path].to_pylist()
        elif self.struct and table.schema.field(self.image).type.get_field_index("path") >= 0:
            paths = pc.struct_field(table[self.image], "path").to_pylist()
        else:
            paths = [None] * len(table)
        # A row without a path still needs a name to be set aside by.
        return [path or f"{self.image} of {size or 0} bytes" for path, size in zip(paths, sizes, strict=True)]

    def _classes(self, table: pa.Table, column: str | None) -> list[str | None]:
        if column is None:
            return [None] * len(table)
        names = self.names.get(column)
        values = table[column].to_pylist()
        if names is None:
            return [None if value is None else str(value) for value in values]
        # Hugging Face writes -1 where a label is withheld.
        return [None if value is None or value < 0 else names[value] for value in values]


def _parquet_columns(schema: pa.Schema, text: str) -> _ParquetColumns:
    image = _first(IMAGE_COLUMNS, schema.names)
    kind = schema.field(image).type if image else None
    struct = pa.types.is_struct(kind) and any(child.name == "bytes" for child in kind) if kind else False
    if image is None or not (struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(
            f"{text}: no column of encoded images ({', '.join(IMAGE_COLUMNS)}; binary, or a struct with `bytes`) among "
            f"{', '.join(schema.names)}"
        )
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = {name: value["names"] for name, value in features.items() if isinstance(value, dict) and "names" in value}
    columns = _ParquetColumns(
        image,
        bool(struct),
        _first(("path",), schema.names),
        _first(LABEL_COLUMNS, schema.names),
        _first(COARSE_COLUMNS, schema.names),
        names,
    )
    for column in columns.used:
        # One of Ray's types is of pickled objects: to read them would be to run what the file asks for.
        if isinstance(schema.field(column).type, pa.BaseExtensionType):
            raise ValueError(f"{text}: column {column} must hold plain values, not {schema.field(column).type}")
    return columns


def _first(wanted: Iterable[str], present: list[str]) -> str | None:
    return next((name for name in wanted if name in present), None)


def _tar_rows(samples: pd.DataFrame) -> pa.Table:
    """Turn WebDataset samples (`__key__`, `__url__`, and bytes by file ending) into rows.

    Samples need not have the same files; NaN stands for those that one lacks.
    """
    rows = []
    for sample in samples.to_dict("records"):
        files = {str(name).lower(): data for name, data in sample.items() if isinstance(data, bytes)}
        image = _first((*IMAGE_COLUMNS[3:], "bmp", "gif"), list(files))
        about = json.loads(files.get("json", b"{}"))
        label = _text(files.get("cls")) or _text(about.get("label")) or _text(files.get("txt"))
        path = f"{posixpath.basename(sample['__url__'])}/{sample['__key__']}"
        rows.append(
            {"bytes": files.get(image or ""), "path": path, "label": label, "coarse": _text(about.get("coarse"))}
        )
    return pa.Table.from_pylist(rows, schema=ROW)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode().strip()
    return None if value is None else str(value)
