"""The data set that comes with the product: real files on disk of a fine-grained problem, made on the spot."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pipelines.demo.birds import SPECIES, Species
from pipelines.demo.scenes import draw_bird

MARKER = "demo-images.json"
VERSION = 2
"""Of the drawings: raise it when the same parameters give other pictures, lest old folders pass for new ones."""

SPLITS = ("train", "test")


def generate_demo_images(
    destination: Path | str,
    *,
    seed: int = 0,
    train_per_class: int = 60,
    test_per_class: int = 20,
    size: int = 160,
) -> None:
    """Write `destination/{train,test}/<family>/<species>/0000.jpg` and so on, unless they are there already.

    An image depends on the seed, the split, the species and its number alone, not on how many are made.

    Args:
        destination: folder for the images, which may not exist yet.
        seed: of everything that is drawn by chance, >= 0.
        train_per_class: images of each of the 16 species in `train`.
        test_per_class: images of each of the 16 species in `test`.
        size: side of the images in pixels.

    Raises:
        ValueError: the folder holds anything but a complete set with these parameters.
    """
    folder = Path(destination)
    wanted = {
        "version": VERSION,
        "seed": seed,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
        "size": size,
    }
    if is_complete(folder, wanted):
        return
    counts = dict(zip(SPLITS, (train_per_class, test_per_class), strict=True))
    for split in SPLITS:
        for species in SPECIES:
            (folder / split / species.family / species.name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # OpenCV draws outside the interpreter's lock
        for split in SPLITS:
            write = partial(write_images, folder, seed, size, split)
            list(threads.map(write, range(counts[split])))
    # Last, so that a folder with the marker is complete.
    (folder / MARKER).write_text(json.dumps({**wanted, "species": [asdict(each) for each in SPECIES]}, indent=2) + "\n")


def is_complete(folder: Path, wanted: dict[str, int]) -> bool:
    """Tell whether a folder holds the set with these parameters; False where there is nothing in it.

    Raises:
        ValueError: it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, where a folder for the demo images is needed: name another folder")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{folder} is not empty and holds no complete set of demo images (no {MARKER}): "
            "name another folder, or delete this one if an interrupted run left it"
        )
    differing = [f"{name}={found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]
    if differing:
        raise ValueError(
            f"{folder} holds demo images with {'; '.join(differing)}: name another folder, or delete this one"
        )
    return True


def write_images(folder: Path, seed: int, size: int, split: str, number: int) -> None:
    """Write the image with this number of every species."""
    for species in SPECIES:
        path = folder / split / species.family / species.name / f"{number:04d}.jpg"
        path.write_bytes(demo_jpeg(seed, split, species, number, size))


def demo_jpeg(seed: int, split: str, species: Species, number: int, size: int) -> bytes:
    """Return one image of the set as the bytes of its file."""
    rng = np.random.default_rng([seed, SPLITS.index(split), SPECIES.index(species), number])
    picture = draw_bird(species, rng, size)
    quality = int(rng.integers(80, 96))
    _, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()
