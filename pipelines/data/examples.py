"""A few photographs of a source, chosen to be shown."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data.decode import ImageError, decode_image
from pipelines.data.layouts import IMAGE_ENDINGS
from pipelines.data.sources import find_source, list_images, open_filesystem, read_images


@dataclass(frozen=True)
class Photograph:
    """An image that can be shown.

    Attributes:
        path: where it is.
        label: its fine class; None where it has none.
        data: the encoded bytes, which decode.
    """

    path: str
    label: str | None
    data: bytes

    @property
    def stem(self) -> str:
        return posixpath.splitext(posixpath.basename(self.path))[0]


def is_image_file(text: str) -> bool:
    """Whether a text names a single image instead of a source."""
    return text.lower().endswith(IMAGE_ENDINGS)


def in_shards(text: str) -> bool:
    """Whether the images can only be read by Ray.

    Raises:
        ValueError: there is no such source or image file.
    """
    if is_image_file(text):
        filesystem, path = open_filesystem(text)
        if not filesystem.get_file_info(path).is_file:
            raise ValueError(f"{text}: there is no such file")
        return False
    return find_source(text).in_shards


def choose(text: str, count: int, seed: int) -> list[Photograph]:
    """Return at most `count` photographs of a source, spread over its classes, the same for the same seed.

    Images that cannot be used are named on the terminal, and others taken for them. Shards need a running Ray.

    Args:
        text: a source, or an image file, which alone is returned.
        count: at least 1.
        seed: draws the images, where there are more.

    Raises:
        ValueError: there is no such source, or none of its images can be used.
    """
    chosen: list[Photograph] = []
    for path, label, data in _candidates(text, seed):
        try:
            decode_image(data or b"")
        except ImageError as error:
            print(f"set aside: {path}: {error}", flush=True)
            continue
        chosen.append(Photograph(path, label, data))
        if len(chosen) == count:
            break
    if not chosen:
        raise ValueError(f"{text}: none of its images can be used")
    return chosen


def spread(labels: Sequence[str | None], seed: int) -> list[int]:
    """Return all places of `labels` in a random order in which no class comes twice before each has come once."""
    rounds, seen = [], Counter[str | None]()
    for place in np.random.default_rng(seed).permutation(len(labels)).tolist():
        rounds.append((seen[labels[place]], place))
        seen[labels[place]] += 1
    return [place for _, place in sorted(rounds, key=lambda pair: pair[0])]


def _candidates(text: str, seed: int) -> Iterator[tuple[str, str | None, bytes]]:
    """Yield path, label and bytes of a source's images in the order of `spread`; no bytes of what cannot be read."""
    if is_image_file(text):
        filesystem, path = open_filesystem(text)
        with filesystem.open_input_stream(path) as stream:
            yield text, None, stream.read()
        return
    source = find_source(text)
    if source.in_shards:
        yield from _from_shards(text, seed)
        return
    rows = list_images(source).to_pylist()
    for place in spread([row["label"] for row in rows], seed):
        path = rows[place]["path"]
        try:
            with source.filesystem.open_input_stream(path) as stream:
                yield path, rows[place]["label"], stream.read()
        except OSError:
            yield path, rows[place]["label"], b""


def _from_shards(text: str, seed: int) -> Iterator[tuple[str, str | None, bytes]]:
    from pipelines.data.samples import ImageStore

    images = read_images(text).materialize()
    store = ImageStore.from_dataset(images)
    rows = images.select_columns(["path", "label"]).take_all()
    for place in spread([row["label"] for row in rows], seed):
        data = next(store.read(np.array([place])))
        yield rows[place]["path"], rows[place]["label"], data
