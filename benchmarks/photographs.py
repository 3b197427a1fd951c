"""Photographs that can be made anywhere: JPEGs of a photograph's size in pixels and bytes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def make_photographs(folder: Path, count: int, width: int, height: int) -> Path:
    """Write `count` JPEGs into two class folders below `folder`, and return it."""
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        made_photograph(number, width, height).save(path, "JPEG", quality=90)
    return folder


def made_photograph(seed: int, width: int, height: int) -> Image.Image:
    """Return noise whose spectrum falls as a photograph's does (amplitude 1 / frequency), and so its JPEG's size."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.float32)
    for octave in range(2, 9):
        noise = rng.normal(0, 50 * 2.0 ** (-octave / 2), (2**octave, 2**octave, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
