"""Find the images that an encoder takes to be most like others, among those that `lodisc embed` has embedded."""

from __future__ import annotations

import heapq
import posixpath
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import fs
from usearch.index import MetricKind
from usearch.index import search as exact_search

from lodisc.encoder import Encoder
from lodisc.views import eval_view
from pipelines.data.decode import ImageError, decode_image
from pipelines.data.sources import ROW, open_filesystem
from pipelines.evaluation.features import Embed, matrix
from pipelines.pictures import GREY, SIDE, Sheet, draw, neighbour_sheet
from pipelines.run.checkpoint import load_encoder, weights_fingerprint
from pipelines.takeaway.embeddings import About, EmbeddingFolder
from pipelines.takeaway.options import SearchConfig

ROWS_AT_A_TIME = 16_384  # of embeddings in memory: 50 MB at 768 numbers each


@dataclass(frozen=True)
class Neighbour:
    """An image that was found.

    Attributes:
        similarity: cosine similarity of its embedding and the query's.
        row: its place in the source.
        path: of the image.
        label: fine class name, if it has one.
    """

    similarity: float
    row: int
    path: str
    label: str | None


@dataclass
class Found:
    """What is found for a query.

    Attributes:
        path: of the query, absolute.
        embedding: (D,) float32.
        neighbours: nearest first.
        among: whether the query is itself one of the embedded images.
        label: the query's, if it is among them and has one.
    """

    path: str
    embedding: np.ndarray
    neighbours: list[Neighbour] = field(default_factory=list)
    among: bool = False
    label: str | None = None


def finished(folder: EmbeddingFolder) -> About:
    """Return what a folder of embeddings holds.

    Raises:
        ValueError: it holds none, or not all of them yet.
    """
    about = folder.about()
    if about is None:
        raise ValueError(f"embeddings: {folder.text} holds none; write them with `lodisc embed`")
    if missing := folder.missing(about):
        there = about.shards - len(missing)
        raise ValueError(
            f"embeddings: {folder.text} has {there} of its {about.shards} files; finish it with the same `lodisc embed`"
        )
    return about


def search(config: SearchConfig) -> list[Found]:
    """Print the nearest of the embedded images for each query, and draw them on a sheet. Needs no Ray.

    A query that is itself one of the embedded images is left out of what it finds.

    Raises:
        ValueError: a query cannot be read, the encoder is gone or another one, or there is nothing to find.
    """
    folder = EmbeddingFolder.at(config.embeddings)
    about = finished(folder)
    queries = {path: data for path, data in map(_read_query, config.image)}
    found = _embed(queries, _encoder(config, about), about.origin.encoder["image_size"])
    columns = ["path", "label", "embedding"]
    scan(
        folder.dataset(about).to_batches(columns=columns, batch_size=ROWS_AT_A_TIME, batch_readahead=2), found, config.k
    )
    if not all(query.neighbours for query in found):
        raise ValueError(f"embeddings: {config.embeddings} holds no image but the query")
    for query in found:
        print(table(query))
    Path(config.sheet).parent.mkdir(parents=True, exist_ok=True)
    draw(sheet(found, queries, about.origin.images)).save(config.sheet)
    print(f"pictures in {config.sheet}", flush=True)
    return found


def _read_query(image: str) -> tuple[str, bytes]:
    filesystem, path = open_filesystem(image)
    try:
        with filesystem.open_input_stream(path) as stream:
            data = stream.read()
        decode_image(data)
    except OSError as error:
        raise ValueError(f"image: {image} cannot be read: {error}") from error
    except ImageError as error:
        raise ValueError(f"image: {image}: {error}") from error
    return posixpath.normpath(path), data


def _encoder(config: SearchConfig, about: About) -> Encoder:
    place = config.checkpoint or about.origin.checkpoint
    try:
        encoder, state = load_encoder(place)
    except ValueError as error:
        raise ValueError(f"checkpoint: {error}; say with --checkpoint where the encoder lies now") from error
    if (weights := weights_fingerprint(encoder)) != about.origin.weights:
        raise ValueError(
            f"checkpoint: {place} (step {state['step']}, weights {weights}) is not the encoder of {config.embeddings} "
            f"(step {about.origin.step}, weights {about.origin.weights})"
        )
    return encoder


def _embed(queries: dict[str, bytes], encoder: Encoder, image_size: int) -> list[Found]:
    rows = [{"path": path, "bytes": data} for path, data in queries.items()]
    embedded = Embed(encoder, image_size, torch.get_num_threads())(pa.Table.from_pylist(rows, schema=ROW))
    return [Found(path, vector) for path, vector in zip(queries, matrix(embedded["embedding"]), strict=True)]


def scan(batches: Iterable[pa.RecordBatch], found: list[Found], k: int) -> None:
    """Look through embedded images {path, label, embedding} and keep for each query the k nearest.

    Every pair is compared, by usearch: exact, in float32 whatever the stored dtype, on all cores. An index would have
    to be built and kept, and pays off only for many queries. faiss would do the same, but brings an OpenMP of its own,
    which crashes beside torch's on macOS.
    """
    start = 0
    for batch in batches:
        if len(batch):
            _keep_nearest(pa.Table.from_batches([batch]), start, found, k)
        start += len(batch)


def _keep_nearest(rows: pa.Table, start: int, found: list[Found], k: int) -> None:
    own = [_places_of(query.path, rows["path"]) for query in found]
    count = min(len(rows), k + max(map(len, own)))
    vectors = matrix(rows["embedding"]).astype(np.float32)
    matches = exact_search(vectors, np.stack([q.embedding for q in found]), count, MetricKind.Cos, exact=True)
    shape = (len(found), count)  # usearch drops the first dimension of a single query
    for query, itself, places, distances in zip(
        found, own, matches.keys.reshape(shape), matches.distances.reshape(shape), strict=True
    ):
        if itself and not query.among:
            query.among, query.label = True, rows["label"][itself[0]].as_py()
        query.neighbours += [
            Neighbour(1 - float(distance), start + place, rows["path"][place].as_py(), rows["label"][place].as_py())
            for place, distance in zip(places.tolist(), distances, strict=True)
            if place not in itself
        ]
        query.neighbours = heapq.nsmallest(k, query.neighbours, key=lambda found: (-found.similarity, found.row))


def _places_of(path: str, paths: pa.ChunkedArray) -> list[int]:
    """Return where a path is in a column; there it may lead through `..`, as a list file may write it."""
    alike = pc.indices_nonzero(pc.ends_with(paths, posixpath.basename(path))).to_pylist()
    return [place for place in alike if posixpath.normpath(paths[place].as_py()) == path]


def table(query: Found) -> str:
    """Return what a query found as lines of text."""
    itself = ""
    if query.among:
        itself = f", itself among the images{f' as {query.label}' if query.label else ''}: left out"
    width = max(len("label"), *(len(neighbour.label or "") for neighbour in query.neighbours))
    lines = [f"{query.path}{itself}", f"  {'rank':>4}  {'similarity':>10}  {'label':{width}}  path"]
    for rank, neighbour in enumerate(query.neighbours, start=1):
        lines.append(f"  {rank:4}  {neighbour.similarity:10.4f}  {neighbour.label or '':{width}}  {neighbour.path}")
    return "\n".join(lines)


def sheet(found: list[Found], queries: dict[str, bytes], source: str) -> Sheet:
    """Show each query, from its encoded image, and beside it what it found.

    Pictures are read from where the images of `source` lie, else from this machine; one that cannot be read is grey.
    """
    filesystems = [open_filesystem(source)[0], fs.LocalFileSystem()]
    count = min(len(query.neighbours) for query in found)
    shown = [query.neighbours[:count] for query in found]
    return neighbour_sheet(
        np.stack([_picture(queries[query.path]) for query in found]),
        np.stack([[_picture(_read(neighbour.path, filesystems)) for neighbour in row] for row in shown]),
        [query.label for query in found],
        [[neighbour.label for neighbour in row] for row in shown],
        np.array([[neighbour.similarity for neighbour in row] for row in shown]),
    )


def _read(path: str, filesystems: list[fs.FileSystem]) -> bytes:
    for filesystem in filesystems:
        with suppress(OSError), filesystem.open_input_stream(path) as stream:
            return stream.read()
    return b""


def _picture(data: bytes) -> np.ndarray:
    try:
        return eval_view(decode_image(data), SIDE)
    except ImageError:
        return np.full((3, SIDE, SIDE), GREY[0], dtype=np.uint8)
