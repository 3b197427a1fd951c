"""Painted birds: 4 families that differ in silhouette, each with 4 species that differ in small parts alone."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# float32 throughout; OpenCV's annotations cannot say so.
Image = NDArray[Any]
Point = tuple[float, float]
Colour = tuple[float, float, float]

CANVAS_UNITS = 1.3
"""Side of a bird's canvas, in units of about one bird's length; the origin lies in its middle."""


@dataclass(frozen=True)
class Species:
    """One class: a family, which is a silhouette, and the parts that tell it from the family's other species.

    Attributes:
        beak: `long` and thin, or `short` and thick.
        bars: bars across the wing, 0 to 2.
        head: `cap`, `stripe` through the eye, or `plain`.
        tail_tip: whether the end of the tail has the marks' colour.
    """

    family: str
    name: str
    beak: str
    bars: int
    head: str
    tail_tip: bool


# Any two species of a family differ in two parts or more, and no part alone parts all four.
SPECIES = (
    Species("finch", "capped_finch", "short", 0, "cap", True),
    Species("finch", "masked_finch", "long", 2, "stripe", False),
    Species("finch", "ladder_finch", "short", 2, "plain", False),
    Species("finch", "banded_finch", "long", 1, "cap", True),
    Species("heron", "capped_heron", "long", 1, "cap", False),
    Species("heron", "masked_heron", "short", 0, "stripe", True),
    Species("heron", "ladder_heron", "long", 2, "plain", True),
    Species("heron", "banded_heron", "short", 1, "stripe", False),
    Species("duck", "ladder_duck", "short", 2, "cap", False),
    Species("duck", "plain_duck", "long", 0, "plain", True),
    Species("duck", "banded_duck", "long", 1, "stripe", False),
    Species("duck", "masked_duck", "short", 0, "stripe", True),
    Species("swallow", "capped_swallow", "long", 0, "cap", False),
    Species("swallow", "banded_swallow", "short", 1, "plain", True),
    Species("swallow", "ladder_swallow", "long", 2, "cap", True),
    Species("swallow", "masked_swallow", "short", 2, "stripe", False),
)


@dataclass(frozen=True)
class Anatomy:
    """The silhouette of a family, facing right, y downwards, in bird lengths.

    Attributes:
        trunk: circles (x, y, radius) from the rump to the head, between which the body runs smoothly.
        tail: feathers, each (root, root, end, end).
        wing: outline; its first point is the shoulder and `wing_tip` the far end.
        legs: polylines.
        beak_tilt: degrees that the beak points down.
    """

    trunk: tuple[tuple[float, float, float], ...]
    tail: tuple[tuple[Point, Point, Point, Point], ...]
    wing: tuple[Point, ...]
    wing_tip: Point
    legs: tuple[tuple[Point, ...], ...] = ()
    beak_tilt: float = 5.0


ANATOMIES = {
    "finch": Anatomy(
        trunk=(
            (-0.22, 0.12, 0.07),
            (-0.06, 0.07, 0.18),
            (0.08, 0.01, 0.215),
            (0.17, -0.11, 0.165),
            (0.22, -0.22, 0.15),
        ),
        tail=(((-0.17, 0.06), (-0.15, 0.18), (-0.47, 0.31), (-0.50, 0.17)),),
        wing=((0.13, -0.06), (-0.03, -0.10), (-0.20, 0.01), (-0.34, 0.15), (-0.16, 0.16), (0.02, 0.15), (0.12, 0.07)),
        wing_tip=(-0.32, 0.14),
        legs=(((-0.01, 0.20), (-0.03, 0.34)), ((0.08, 0.20), (0.07, 0.34))),
    ),
    "heron": Anatomy(
        trunk=(
            (-0.27, 0.10, 0.06),
            (-0.12, 0.02, 0.135),
            (0.04, -0.04, 0.125),
            (0.15, -0.13, 0.07),
            (0.11, -0.26, 0.05),
            (0.12, -0.35, 0.055),
            (0.19, -0.42, 0.105),
        ),
        tail=(((-0.22, 0.03), (-0.20, 0.14), (-0.42, 0.26), (-0.47, 0.14)),),
        wing=((0.09, -0.08), (-0.05, -0.10), (-0.20, -0.01), (-0.36, 0.15), (-0.18, 0.14), (-0.03, 0.10), (0.07, 0.03)),
        wing_tip=(-0.33, 0.13),
        legs=(
            ((-0.05, 0.12), (-0.10, 0.32), (-0.06, 0.53), (0.02, 0.53)),
            ((0.02, 0.10), (0.05, 0.32), (0.06, 0.53), (0.14, 0.53)),
        ),
        beak_tilt=8.0,
    ),
    "duck": Anatomy(
        trunk=(
            (-0.34, 0.06, 0.06),
            (-0.18, 0.11, 0.135),
            (0.02, 0.13, 0.15),
            (0.17, 0.09, 0.13),
            (0.23, -0.04, 0.085),
            (0.26, -0.15, 0.125),
        ),
        tail=(((-0.30, 0.12), (-0.24, 0.00), (-0.50, -0.10), (-0.54, 0.04)),),
        wing=((0.13, 0.05), (0.00, 0.00), (-0.18, 0.01), (-0.38, 0.03), (-0.22, 0.16), (-0.04, 0.20), (0.09, 0.16)),
        wing_tip=(-0.36, 0.05),
        beak_tilt=10.0,
    ),
    "swallow": Anatomy(
        trunk=(
            (-0.20, 0.03, 0.05),
            (-0.06, 0.01, 0.105),
            (0.10, -0.01, 0.125),
            (0.22, -0.03, 0.115),
            (0.30, -0.04, 0.12),
        ),
        tail=(
            ((-0.16, -0.03), (-0.20, 0.06), (-0.54, -0.13), (-0.50, -0.19)),
            ((-0.14, 0.00), (-0.16, 0.08), (-0.50, 0.25), (-0.54, 0.19)),
        ),
        wing=(
            (0.20, -0.06),
            (0.14, -0.22),
            (-0.02, -0.36),
            (-0.26, -0.46),
            (-0.16, -0.24),
            (-0.07, -0.02),
            (0.08, 0.03),
        ),
        wing_tip=(-0.24, -0.44),
        beak_tilt=4.0,
    ),
}


@dataclass(frozen=True)
class Plumage:
    """Colours (RGB, 0 to 1) and stance, none of which tells the species."""

    body: Colour
    wing: Colour
    belly: Colour
    mark: Colour
    beak: Colour
    legs: Colour
    light: float = -2.0
    wobble: float = 0.0
    feathers: int = 0

    @classmethod
    def neutral(cls) -> Plumage:
        """Return the colours of the plate in a field guide."""
        return cls.of(hue=0.58, saturation=0.45, value=0.4, warm=0.09)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Plumage:
        """Draw colours: any hue, dark against the mist."""
        colours = cls.of(
            hue=rng.uniform(),
            saturation=rng.uniform(0.35, 0.8),
            value=rng.uniform(0.3, 0.42),
            warm=rng.uniform(0.02, 0.14),
        )
        light, wobble, feathers = rng.uniform(-2.4, -0.7), 0.009, int(rng.integers(2**31))
        return cls(**{**colours.__dict__, "light": light, "wobble": wobble, "feathers": feathers})

    @classmethod
    def of(cls, *, hue: float, saturation: float, value: float, warm: float) -> Plumage:
        """Return the colours that go with a body of this hue, saturation and value."""

        def hsv(*args: float) -> Colour:
            return colorsys.hsv_to_rgb(args[0] % 1, *args[1:])

        return cls(
            body=hsv(hue, saturation, value),
            wing=hsv(hue + 0.03, saturation, value * 0.74),
            belly=hsv(hue - 0.03, saturation * 0.55, min(1.0, value * 1.3)),
            mark=hsv(hue, 0.08, 0.98),
            beak=hsv(warm, 0.9, 0.96),
            legs=hsv(warm, 0.6, 0.5),
        )


class Painter:
    """A canvas of one bird. Masks are float32 (side, side) from 0 to 1, the canvas float32 (side, side, 3)."""

    def __init__(self, side: int, light: float) -> None:
        self.light = light
        self.side = side
        self.unit = side / CANVAS_UNITS
        self.rgb: Image = np.zeros((side, side, 3), np.float32)
        self.alpha: Image = np.zeros((side, side), np.float32)

    def pixels(self, points: NDArray[Any]) -> NDArray[np.int32]:
        """Return points as OpenCV wants them: pixels with 4 fractional bits."""
        return np.round((points * self.unit + self.side / 2) * 16).astype(np.int32)

    def polygon(self, points: NDArray[Any]) -> Image:
        """Return the mask of a filled outline of (n, 2) points."""
        mask = np.zeros((self.side, self.side), np.uint8)
        cv2.fillPoly(mask, [self.pixels(points)], 255, cv2.LINE_AA, 4)
        return mask.astype(np.float32) / 255

    def discs(self, circles: NDArray[Any]) -> Image:
        """Return the mask of the union of (n, 3) circles x, y, radius."""
        mask = np.zeros((self.side, self.side), np.uint8)
        for (x, y), radius in zip(self.pixels(circles[:, :2]).tolist(), circles[:, 2], strict=True):
            cv2.circle(mask, (x, y), round(radius * self.unit * 16), 255, -1, cv2.LINE_AA, 4)
        return mask.astype(np.float32) / 255

    def line(self, points: NDArray[Any], width: float) -> Image:
        """Return the mask of a polyline through (n, 2) points, `width` bird lengths wide."""
        mask = np.zeros((self.side, self.side), np.uint8)
        thickness = max(1, round(width * self.unit))
        cv2.polylines(mask, [self.pixels(points)], False, 255, thickness, cv2.LINE_AA, 4)
        return mask.astype(np.float32) / 255

    def fill(self, mask: Image, colour: Colour | Image, opacity: float = 1.0, softness: float = 0.0) -> None:
        """Paint a colour, or an image of colours, where the mask is.

        Args:
            mask: what to cover.
            colour: of the paint.
            opacity: 1 hides what is below.
            softness: above 0 the mask is shaded as a form whose edges round off over so many bird lengths.
        """
        # Most parts are small: to work in their boxes alone takes a fraction of the time.
        x, y, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
        if not width:
            return
        box = np.s_[y : y + height, x : x + width]
        cover = mask[box] * np.float32(opacity)
        paint = np.asarray(colour if isinstance(colour, tuple) else colour[box], np.float32)
        if softness:
            paint = paint * self.brightness(mask[box], softness * self.unit)[..., None]
        self.rgb[box] += cover[..., None] * (paint - self.rgb[box])
        np.maximum(self.alpha[box], cover, out=self.alpha[box])

    def brightness(self, mask: Image, softness: float) -> Image:
        """Return the light on a form with this outline: more on the side that faces the light, less on the other."""
        depth = cv2.GaussianBlur(mask, (0, 0), softness, borderType=cv2.BORDER_CONSTANT)
        across, down = cv2.Sobel(depth, -1, 1, 0), cv2.Sobel(depth, -1, 0, 1)
        facing = (across * math.cos(self.light) + down * math.sin(self.light)) * (-0.32 * softness)
        return np.asarray(0.93 + 0.42 * np.clip(facing, -1, 1), np.float32)


def smooth(points: NDArray[Any], closed: bool, steps: int = 10) -> NDArray[Any]:
    """Return a Catmull-Rom curve through (n, d) points, `steps` points a piece."""
    ends = (points[-1:], points[:2]) if closed else (2 * points[:1] - points[1:2], 2 * points[-1:] - points[-2:-1])
    knots = np.concatenate([ends[0], points, ends[1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (knots[i : len(knots) - 3 + i, None] for i in range(4))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    curve = curve.reshape(-1, points.shape[1])
    return curve if closed else np.concatenate([curve, points[-1:]])


def paint_bird(species: Species, plumage: Plumage, side: int) -> tuple[Image, Image]:
    """Paint a bird that faces right.

    Args:
        species: what to paint.
        plumage: in which colours.
        side: pixels of the canvas's sides, which are `CANVAS_UNITS` bird lengths.

    Returns:
        Colours, float32 (side, side, 3) RGB, and coverage, float32 (side, side), both from 0 to 1.
    """
    anatomy = ANATOMIES[species.family]
    rng = np.random.default_rng(plumage.feathers)
    trunk = np.array(anatomy.trunk)
    trunk[:, :2] += rng.normal(size=(len(trunk), 2)) * plumage.wobble
    painter = Painter(side, plumage.light)
    for leg in anatomy.legs:
        painter.fill(painter.line(np.array(leg), 0.022), plumage.legs)
    paint_beak(painter, species, plumage, trunk[-1], anatomy.beak_tilt)
    paint_tail(painter, species, plumage, anatomy)
    paint_trunk(painter, plumage, trunk, rng)
    paint_head(painter, species, plumage, trunk[-1])
    paint_wing(painter, species, plumage, anatomy)
    return np.clip(painter.rgb, 0, 1), painter.alpha


def paint_trunk(painter: Painter, plumage: Plumage, trunk: NDArray[Any], rng: np.random.Generator) -> None:
    """Paint the body from rump to head: pale below, with fine feather strokes."""
    mask = painter.discs(smooth(trunk, closed=False))
    wide = trunk[trunk[:, 2] > 0.1]
    middle, radius = wide[:-1, 1].mean(), wide[:-1, 2].mean() if len(wide) > 1 else 0.1
    y = (np.arange(painter.side, dtype=np.float32) - painter.side / 2) / painter.unit
    below = 1 / (1 + np.exp(-(y - middle - 0.45 * radius) / (0.22 * radius)))
    colour = np.asarray(plumage.body) + below[:, None, None] * (np.asarray(plumage.belly) - np.asarray(plumage.body))
    grain = cv2.GaussianBlur(rng.normal(size=mask.shape).astype(np.float32), (0, 0), sigmaX=4.0, sigmaY=0.9)
    colour = colour.astype(np.float32) * (1 + 0.28 * grain[..., None])
    painter.fill(mask, colour, softness=0.055)


def paint_tail(painter: Painter, species: Species, plumage: Plumage, anatomy: Anatomy) -> None:
    """Paint the tail feathers and the mark at their ends."""
    for feather in anatomy.tail:
        left, right, right_end, left_end = (np.array(point) for point in feather)
        mask = painter.polygon(np.array([left, right, right_end, left_end]))
        painter.fill(mask, plumage.wing, softness=0.02)
        for share in (0.25, 0.5, 0.75):
            barb = np.array([left + share * (right - left), left_end + share * (right_end - left_end)])
            painter.fill(painter.line(barb, 0.006) * mask, (0.05, 0.05, 0.05), 0.35)
        if species.tail_tip:
            from_left, from_right = left + 0.52 * (left_end - left), right + 0.52 * (right_end - right)
            painter.fill(painter.polygon(np.array([from_left, from_right, right_end, left_end])), plumage.mark, 0.9)


def paint_beak(painter: Painter, species: Species, plumage: Plumage, head: NDArray[Any], tilt: float) -> None:
    """Paint the beak, of which the head will cover the root."""
    x, y, radius = head
    # Beaks measure the same whatever the head, so that a small head's is not lost at a low resolution.
    length, thickness = (0.2, 0.036) if species.beak == "long" else (0.105, 0.078)
    turn = np.deg2rad(tilt)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    root, tip = np.array([x, y]) + 0.75 * radius * along, np.array([x, y]) + (0.92 * radius + length) * along
    bulge = root + 0.55 * (tip - root)
    upper = [root - thickness * across, bulge - 0.72 * thickness * across, tip]
    lower = [bulge + 0.6 * thickness * across, root + 0.9 * thickness * across]
    mask = painter.polygon(np.array(upper + lower))
    painter.fill(mask, plumage.beak, softness=0.02)
    painter.fill(painter.line(np.array([root, tip]), 0.008) * mask, (0.1, 0.05, 0.03), 0.6)


def paint_head(painter: Painter, species: Species, plumage: Plumage, head: NDArray[Any]) -> None:
    """Paint the mark of the head, and the eye."""
    x, y, radius = head
    mask = painter.discs(head[None] * [1, 1, 1.02])
    eye = np.array([x + 0.28 * radius, y - 0.12 * radius])
    if species.head == "cap":
        lid = np.array([[-1.3, 0.02], [-0.5, -0.3], [0.4, -0.42], [1.3, -0.3], [1.3, -1.4], [-1.3, -1.4]])
        painter.fill(painter.polygon([x, y] + radius * smooth(lid, closed=True)) * mask, plumage.mark, softness=0.03)
    elif species.head == "stripe":
        band = np.array([[1.1, -0.02], [0.28, -0.12], [-0.45, 0.0], [-1.15, 0.22]])
        painter.fill(painter.line([x, y] + radius * smooth(band, closed=False), 0.058) * mask, plumage.mark)
    for size, colour in ((0.03, (0.85, 0.8, 0.7)), (0.023, (0.03, 0.02, 0.02))):
        painter.fill(painter.discs(np.array([[*eye, size]])), colour)
    painter.fill(painter.discs(np.array([[eye[0] + 0.007, eye[1] - 0.008, 0.007]])), (1.0, 1.0, 1.0))


def paint_wing(painter: Painter, species: Species, plumage: Plumage, anatomy: Anatomy) -> None:
    """Paint the wing, its feathers, and the bars across it."""
    outline = smooth(np.array(anatomy.wing), closed=True)
    mask = painter.polygon(outline)
    shadow = cv2.GaussianBlur(np.roll(mask, round(0.015 * painter.unit), 0), (0, 0), 0.015 * painter.unit)
    painter.fill(shadow * painter.alpha, (0.05, 0.05, 0.08), 0.35)
    painter.fill(mask, plumage.wing, softness=0.03)
    tip = np.array(anatomy.wing_tip)
    # Midway between the outline's ends at the shoulder: the bars run across the line from there to the tip.
    shoulder = (np.array(anatomy.wing[0]) + np.array(anatomy.wing[-1])) / 2
    axis = tip - shoulder
    across = np.array([-axis[1], axis[0]]) / np.hypot(*axis)
    for share in np.linspace(-0.22, 0.22, 9):
        quill = np.array([shoulder + 0.3 * axis + share * across, shoulder + 0.65 * axis + 0.8 * share * across, tip])
        painter.fill(painter.line(smooth(quill, closed=False), 0.007) * mask, (0.03, 0.03, 0.05), 0.4)
    for place in {0: (), 1: (0.42,), 2: (0.26, 0.58)}[species.bars]:
        middle = shoulder + place * axis
        bow = np.array([middle - 0.3 * across, middle - 0.05 * axis, middle + 0.3 * across])
        painter.fill(painter.line(smooth(bow, closed=False), 0.068) * mask, plumage.mark, 0.92)
