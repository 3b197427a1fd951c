"""Photographs of painted birds in mist: pose, blurred background, light and noise, none of which tells the class."""

from __future__ import annotations

import colorsys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.demo.birds import CANVAS_UNITS, Colour, Image, Plumage, Species, paint_bird

SUPERSAMPLING = 2

MIST = (0.72, 0.92)
"""The darkest and the lightest that a background can be, of 1: a bird's outline always shows against it."""

PAPER: Colour = (0.80, 0.83, 0.79)
"""Behind a bird without nuisances: neither as light nor as dark as a mark."""


def draw_bird(
    species: Species, rng: np.random.Generator, size: int = 160, *, nuisances: bool = True
) -> NDArray[np.uint8]:
    """Draw one picture of a species.

    Args:
        species: the class to draw.
        rng: chooses all that does not tell the class.
        size: side of the picture in pixels.
        nuisances: False draws the plate of a field guide: always the same pose and colours, on plain paper.

    Returns:
        uint8 (size, size, 3), RGB.
    """
    side = size * SUPERSAMPLING
    if not nuisances:
        colours, cover = paint_bird(species, Plumage.neutral(), side)
        paper = np.asarray(PAPER, np.float32) * (1 - cover[..., None])
        return to_bytes(shrink(colours * cover[..., None] + paper, size))
    scene = cv2.resize(background(rng, size), (side, side), interpolation=cv2.INTER_LINEAR)
    colours, cover = paint_bird(species, Plumage.sample(rng), side)
    matrix = pose(rng, side)
    premultiplied = cv2.warpAffine(np.dstack([colours * cover[..., None], cover]), matrix, (side, side))
    colours, cover = premultiplied[..., :3], premultiplied[..., 3:]
    # A soft shadow behind the bird parts it from a background that happens to have its colour.
    scene = scene * (1 - 0.3 * cv2.GaussianBlur(cover, (0, 0), 0.02 * side)[..., None])
    photograph = shrink(colours + scene * (1 - cover), size) * lighting(rng, size)
    return to_bytes(photograph + rng.normal(scale=rng.uniform(0.004, 0.02), size=(size, size, 1)))


def pose(rng: np.random.Generator, side: int) -> NDArray[Any]:
    """Draw where the bird is: the affine (2, 3) map from its canvas to a picture of the same size."""
    angle = np.deg2rad(rng.uniform(-8, 8))
    scale = rng.uniform(0.76, 0.84) * CANVAS_UNITS
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.diag([rng.choice([-1.0, 1.0]), 1.0])
    centre = side * (0.5 + rng.uniform(-0.02, 0.02, 2))
    return np.column_stack([turn, centre - turn @ [side / 2, side / 2]])


def background(rng: np.random.Generator, size: int) -> Image:
    """Draw foliage, water or sky in mist, out of focus: float32 (size, size, 3), RGB from 0 to 1."""
    hue = rng.uniform()
    top, bottom = shade(rng, hue, 0.35, 0.85), shade(rng, hue, 0.25, 0.7)
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    scene = np.broadcast_to(
        np.asarray(top, np.float32) * (1 - ramp) + np.asarray(bottom, np.float32) * ramp, (size, size, 3)
    ).copy()
    kind = rng.integers(3)
    if kind == 0:
        scene = bokeh(rng, scene, hue, count=int(rng.integers(25, 45)), largest=0.17)
        scene = branches(rng, scene, hue)
    elif kind == 1:
        scene = bokeh(rng, ripples(rng, scene, hue), hue, count=int(rng.integers(6, 14)), largest=0.08)
    else:
        scene = cv2.GaussianBlur(bokeh(rng, scene, hue, count=8, largest=0.3), (0, 0), 0.07 * size)
        scene = branches(rng, bokeh(rng, scene, hue, count=6, largest=0.1), hue)
    return np.clip(scene, 0, 1)


def shade(rng: np.random.Generator, hue: float, darkest: float, lightest: float) -> Colour:
    """Draw a colour whose hue is near `hue`, seen through mist: all of them are pale."""
    value = MIST[0] + (MIST[1] - MIST[0]) * rng.uniform(darkest, lightest)
    return colorsys.hsv_to_rgb((hue + rng.normal(scale=0.05)) % 1, rng.uniform(0.05, 0.3), value)


def bokeh(rng: np.random.Generator, scene: Image, hue: float, count: int, largest: float) -> Image:
    """Add discs of light, some sharper than others."""
    size = len(scene)
    for blur in (0.03, 0.012, 0.005):
        layer = scene.copy()
        for _ in range(count // 3):
            x, y = rng.integers(0, size * 16, 2).tolist()
            radius = round(size * 16 * rng.uniform(0.25, 1) * largest)
            disc = layer.copy()
            cv2.circle(disc, (x, y), radius, shade(rng, hue, 0.3, 1.0), -1, cv2.LINE_AA, 4)
            layer = cv2.addWeighted(disc, 0.4, layer, 0.6, 0)
        scene = cv2.GaussianBlur(layer, (0, 0), blur * size)
    return scene


def branches(rng: np.random.Generator, scene: Image, hue: float) -> Image:
    """Add a few twigs that cross the picture, out of focus."""
    size = len(scene)
    layer = scene.copy()
    for _ in range(rng.integers(1, 4)):
        start, end = rng.uniform(-0.1, 1.1, (2, 2)) * size
        start[0], end[0] = -0.1 * size, 1.1 * size
        middle = (start + end) / 2 + rng.normal(scale=0.1, size=2) * size
        points = np.round(np.array([start, middle, end]) * 16).astype(np.int32)
        width = int(rng.integers(max(2, size // 60), max(3, size // 20)))
        cv2.polylines(layer, [points], False, shade(rng, hue + 0.5, 0.15, 0.5), width, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(layer, (0, 0), rng.uniform(0.01, 0.02) * size)


def ripples(rng: np.random.Generator, scene: Image, hue: float) -> Image:
    """Add the long low waves of water."""
    size = len(scene)
    waves = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), sigmaX=0.09 * size, sigmaY=1.6)
    waves = np.clip(waves / (waves.std() + 1e-6), -2, 2)[..., None] * np.linspace(0.3, 1, size)[:, None, None]
    glint = np.asarray(shade(rng, hue, 0.7, 1.0), np.float32)
    return (scene + 0.13 * waves * glint).astype(np.float32)


def lighting(rng: np.random.Generator, size: int) -> Image:
    """Draw a gradient of light across the picture: float32 (size, size, 1) about 1."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    level = rng.uniform(0.9, 1.1) + strength * (x * np.cos(angle) + y * np.sin(angle))
    return level[..., None].astype(np.float32)


def shrink(picture: Image, size: int) -> Image:
    """Return the supersampled picture at its final size."""
    return np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), np.float32)


def to_bytes(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a picture from 0 to 1 as uint8."""
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
