"""Where data sets keep their images and labels on disk: each layout as a list of files with their labels."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import fs

SCHEMA = pa.schema([("path", pa.string()), ("label", pa.string()), ("coarse", pa.string())])
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")

Row = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Folder:
    """A folder on some file system, with the few reads that layouts need."""

    filesystem: fs.FileSystem
    path: str

    def at(self, *parts: str) -> str:
        return posixpath.join(self.path, *parts)

    def has(self, *parts: str) -> bool:
        return self.filesystem.get_file_info(self.at(*parts)).type != fs.FileType.NotFound

    def bytes(self, *parts: str) -> bytes:
        with self.filesystem.open_input_stream(self.at(*parts)) as stream:
            return stream.read()

    def lines(self, *parts: str) -> list[str]:
        return [line for line in self.bytes(*parts).decode("utf-8-sig").splitlines() if line.strip()]

    def table(self, *parts: str) -> dict[str, str]:
        """Read `key value` lines."""
        return dict(line.strip().split(maxsplit=1) for line in self.lines(*parts))


def image_folder(folder: Folder) -> pa.Table:
    """List the images below a folder.

    `family/species/x.jpg` has label `family/species` and coarse label `family`; `species/x.jpg` has no coarse label;
    images directly in the folder have none at all.
    """
    selector = fs.FileSelector(folder.path, recursive=True)
    paths = sorted(
        info.path
        for info in folder.filesystem.get_file_info(selector)
        if info.type == fs.FileType.File and info.path.lower().endswith(IMAGE_ENDINGS)
    )
    rows: list[Row] = []
    for path in paths:
        classes = posixpath.dirname(posixpath.relpath(path, folder.path))
        rows.append((path, classes or None, classes.split("/")[0] if "/" in classes else None))
    return to_table(rows)


def list_file(folder: Folder, name: str) -> pa.Table:
    """Read `path, label[, coarse]` lines; paths are relative to the file's folder.

    A `classes.csv` beside it (fine name, fine id, coarse name, coarse id) gives ids their names.

    Raises:
        ValueError: a line that names no file, naming the line.
    """
    fine, coarse = _class_names(folder)
    rows: list[Row] = []
    text = folder.bytes(name).decode("utf-8-sig")
    for number, cells in enumerate(csv.reader(io.StringIO(text), skipinitialspace=True), start=1):
        values = [cell.strip() for cell in cells]
        if not any(values):
            continue
        if not values[0] or len(values) > 3:
            raise ValueError(
                f"{folder.at(name)}, line {number}: expected `path, label[, coarse]`, got {','.join(cells)}"
            )
        label, family = [cell or None for cell in (*values[1:], "", "")[:2]]
        rows.append((folder.at(values[0]), fine.get(label or "", label), coarse.get(family or "", family)))
    return to_table(rows)


def _class_names(folder: Folder) -> tuple[dict[str, str], dict[str, str]]:
    if not folder.has("classes.csv"):
        return {}, {}
    rows = [row for row in csv.reader(folder.lines("classes.csv")[1:], skipinitialspace=True) if len(row) == 4]
    return {row[1]: row[0] for row in rows}, {row[3]: row[2] for row in rows}


def cub_200_2011(folder: Folder, split: str) -> pa.Table:
    """Caltech-UCSD Birds: images.txt, image_class_labels.txt, classes.txt and train_test_split.txt (1 is train)."""
    names, in_train = folder.table("classes.txt"), folder.table("train_test_split.txt")
    labels = folder.table("image_class_labels.txt")
    wanted = {"train": "1", "test": "0"}.get(split)
    return to_table(
        [
            (folder.at("images", path), names[labels[image]], None)
            for image, path in folder.table("images.txt").items()
            if wanted in (None, in_train[image])
        ]
    )


def fgvc_aircraft(folder: Folder, split: str) -> pa.Table:
    """FGVC-Aircraft: data/images/ID.jpg, label = variant, coarse label = family.

    The photographs keep the 20 rows of copyright notice at their lower edge.
    """
    rows: list[Row] = []
    for part in ("train", "val", "test") if split == "all" else (split,):
        families = folder.table("data", f"images_family_{part}.txt")
        variants = folder.table("data", f"images_variant_{part}.txt")
        rows += [(folder.at("data", "images", f"{i}.jpg"), label, families[i]) for i, label in variants.items()]
    return to_table(rows)


def stanford_cars(folder: Folder, split: str) -> pa.Table:
    """Stanford Cars: cars_train/, cars_test/, and the annotations of devkit/ (MATLAB files)."""
    rows: list[Row] = []
    for part in ("train", "test") if split == "all" else (split,):
        names = [str(name) for name in np.atleast_1d(_mat(folder, "cars_meta.mat")["class_names"])]
        annotations = "cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        for entry in np.atleast_1d(_mat(folder, annotations)["annotations"]):
            rows.append((folder.at(f"cars_{part}", str(entry["fname"])), names[int(entry["class"]) - 1], None))
    return to_table(rows)


def _mat(folder: Folder, name: str) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    for place in (("devkit", name), (name,)):
        if folder.has(*place):
            return loadmat(io.BytesIO(folder.bytes(*place)), squeeze_me=True)
    raise ValueError(f"{folder.path}: {name} is missing from devkit/; without it the images have no labels")


@dataclass(frozen=True)
class Official:
    """A published layout: how it is recognised, its splits, and its reader."""

    markers: tuple[str, ...]
    splits: tuple[str, ...]
    read: Callable[[Folder, str], pa.Table]


OFFICIAL = {
    "CUB-200-2011": Official(("images.txt", "train_test_split.txt"), ("train", "test", "all"), cub_200_2011),
    "FGVC-Aircraft": Official(
        ("data/images_variant_train.txt",), ("train", "val", "trainval", "test", "all"), fgvc_aircraft
    ),
    "Stanford Cars": Official(("cars_train", "devkit"), ("train", "test", "all"), stanford_cars),
}


def official_layout(folder: Folder) -> str | None:
    """Return the name of the published layout that a folder has."""
    for name, layout in OFFICIAL.items():
        if all(folder.has(marker) for marker in layout.markers):
            return name
    return None


def to_table(rows: list[Row]) -> pa.Table:
    """Return (path, label, coarse) rows as an Arrow table."""
    paths, labels, coarse = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table([list(paths), list(labels), list(coarse)], schema=SCHEMA)
