"""Sheets of square pictures with titles and notes: what is on them, and how one is drawn as an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 40, 16
TITLE, TEXT, NOTE = 34, 20, 17  # heights of letters
LINE = 1.45  # of a line, in heights of its letters
INK, FAINT, PAPER = (28, 30, 34), (112, 116, 124), (255, 255, 255)


@dataclass(frozen=True)
class Tile:
    """A square picture.

    Attributes:
        picture: what is shown.
        title: written above.
        note: written below.
        first: whether a group of tiles begins with it, so that it keeps a distance.
    """

    picture: Image.Image
    title: str = ""
    note: str = ""
    first: bool = False


@dataclass(frozen=True)
class Row:
    """Tiles side by side.

    Attributes:
        tiles: at least one.
        side: of each tile, in pixels of the sheet.
    """

    tiles: Sequence[Tile]
    side: int


@dataclass(frozen=True)
class Sheet:
    """Rows of tiles under one title.

    Attributes:
        name: of its file, without an ending.
        title: one line.
        about: one line that says what is seen.
        rows: at least one.
    """

    name: str
    title: str
    about: str
    rows: Sequence[Row]


def draw(sheet: Sheet) -> Image.Image:
    """Draw a sheet as an RGB image. A text that is too long for its place is cut."""
    width = max(_width(row) for row in sheet.rows)
    top = MARGIN + _line(TITLE) + _line(TEXT) + GAP
    height = top + sum(_height(row) + GAP for row in sheet.rows) - GAP + MARGIN
    image = Image.new("RGB", (width + 2 * MARGIN, height), PAPER)
    pen = ImageDraw.Draw(image)
    _write(pen, (MARGIN, MARGIN), sheet.title, _font(TITLE, bold=True), INK, width)
    _write(pen, (MARGIN, MARGIN + _line(TITLE)), sheet.about, _font(TEXT), FAINT, width)
    for row in sheet.rows:
        _draw_row(image, pen, row, top)
        top += _height(row) + GAP
    return image


def places(row: Row) -> list[int]:
    """Return how far from the row's left edge each tile begins, in pixels."""
    lefts, left = [], 0
    for number, tile in enumerate(row.tiles):
        left += GAP if number and tile.first else 0
        lefts.append(left)
        left += row.side + GAP
    return lefts


def _draw_row(image: Image.Image, pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    below = top + (_line(TEXT) if any(tile.title for tile in row.tiles) else 0)
    for tile, left in zip(row.tiles, places(row), strict=True):
        x = MARGIN + left
        _write(pen, (x, top), tile.title, _font(TEXT), INK, row.side)
        picture = tile.picture
        if picture.width != row.side:
            picture = picture.resize((row.side, row.side), Image.Resampling.LANCZOS)
        image.paste(picture, (x, below))
        _write(pen, (x, below + row.side + NOTE // 3), tile.note, _font(NOTE), FAINT, row.side)


def _width(row: Row) -> int:
    return places(row)[-1] + row.side


def _height(row: Row) -> int:
    titled, noted = any(tile.title for tile in row.tiles), any(tile.note for tile in row.tiles)
    return row.side + (_line(TEXT) if titled else 0) + (_line(NOTE) + NOTE // 3 if noted else 0)


def _line(size: int) -> int:
    return round(LINE * size)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # The font that comes with matplotlib: PIL's own has no letter beyond ASCII.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), round(size * 0.9))


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    if pen.textlength(text, font) > width:
        while text and pen.textlength(f"{text}…", font) > width:
            text = text[:-1]
        text = f"{text.rstrip()}…"
    pen.text(corner, text, colour, font)
