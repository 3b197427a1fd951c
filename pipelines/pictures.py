"""Pictures of what an encoder looks at and what it finds alike, and the sheets on which they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 40, 16
TITLE, TEXT, NOTE = 34, 20, 17  # heights of letters
LINE = 1.45  # of a line, in heights of its letters
SIDE = 160  # of a picture on the sheets of a run, in pixels
FRAME = 5
INK, FAINT, PAPER = (28, 30, 34), (112, 116, 124), (255, 255, 255)
# From Okabe and Ito's palette, told apart with red-green blindness too.
SAME, OTHER, UNKNOWN = (0, 158, 115), (213, 94, 0), (190, 190, 190)
GREY = (128, 128, 128)  # of dropped patches: neither dark nor bright photographs are taken for it
DROPPED = 0.72  # opacity of that grey
HEAT = 0.62  # opacity of the heat map


@dataclass(frozen=True)
class Tile:
    """A square picture.

    Attributes:
        picture: what is shown.
        title: written above.
        note: written below.
        first: whether a group of tiles begins with it, so that it keeps a distance.
        frame: colour of a frame along its edges, None for none.
    """

    picture: Image.Image
    title: str = ""
    note: str = ""
    first: bool = False
    frame: tuple[int, int, int] | None = None


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


def pivot_sheet(images: ArrayLike, scores: ArrayLike, kept: ArrayLike, grid: tuple[int, int]) -> Sheet:
    """Show where an encoder's pivots are: of each image the photograph, its scores as heat, the patches it keeps.

    Args:
        images: (B, 3, H, W) uint8, RGB.
        scores: (B, N) log scores; coloured from the lowest to the highest of each image, outliers clipped.
        kept: (B, K) indices of the kept patches; the others are greyed.
        grid: (rows, columns) of patches; rows * columns = N.
    """
    photos, scores, kept = np.asarray(images), np.asarray(scores, dtype=np.float32), np.asarray(kept)
    down = len(photos) if len(photos) <= 3 else -(-len(photos) // 2)
    rows: list[list[Tile]] = [[] for _ in range(down)]
    for number, (photo, score, indices) in enumerate(zip(photos, scores, kept, strict=True)):
        picture = picture_of(photo).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        shown = {
            "photograph": picture,
            "pivot scores": heat_map(picture, score, grid),
            "kept": kept_patches(picture, indices, grid),
        }
        top = number % down == 0
        rows[number % down] += [
            Tile(tile, title if top else "", first=title == "photograph") for title, tile in shown.items()
        ]
    about = f"{kept.shape[1]} of {scores.shape[1]} patches are kept"
    return Sheet("pivots", "Where the pivots lie", about, [Row(tiles, SIDE) for tiles in rows])


def neighbour_sheet(
    query_images: ArrayLike,
    neighbour_images: ArrayLike,
    query_labels: Sequence[str | None] | None,
    neighbour_labels: Sequence[Sequence[str | None]] | None,
    similarity: ArrayLike,
) -> Sheet:
    """Show queries, each followed by its nearest neighbours, framed green for the query's label and red for another.

    Args:
        query_images: (Q, 3, H, W) uint8, RGB.
        neighbour_images: (Q, k, 3, H, W) uint8, nearest first.
        query_labels: Q labels, None where there are none; frames are grey where a query or neighbour has none.
        neighbour_labels: Q rows of k labels.
        similarity: (Q, k) cosine similarities, written below the neighbours.
    """
    queries, neighbours, similarity = np.asarray(query_images), np.asarray(neighbour_images), np.asarray(similarity)
    rows = []
    for place, query in enumerate(queries):
        label = query_labels[place] if query_labels else None
        tiles = [Tile(picture_of(query), "" if place else "query", label or "")]
        for rank, near in enumerate(neighbours[place]):
            found = neighbour_labels[place][rank] if neighbour_labels else None
            frame = UNKNOWN if label is None or found is None else SAME if found == label else OTHER
            note = f"{similarity[place, rank]:.2f}  {found or ''}"
            tiles.append(Tile(picture_of(near), note=note, first=rank == 0, frame=frame))
        rows.append(Row(tiles, SIDE))
    about = "nearest first, with cosine similarity"
    if query_labels and any(query_labels):
        about += "; green: same label, red: another"
    return Sheet("neighbours", "Nearest neighbours", about, rows)


def heat_map(photo: Image.Image, scores: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """Lay the scores (N,) of an image's patches over its photograph as heat.

    It is coloured from the image's lowest score to its highest, but a fiftieth at either end.
    """
    low, high = np.percentile(scores, (2, 98))
    relative = np.clip((scores - low) / max(high - low, 1e-12), 0, 1).reshape(grid)
    levels = Image.fromarray((relative * 255).astype(np.uint8)).resize(photo.size, Image.Resampling.BICUBIC)
    colours = matplotlib.colormaps["inferno"](np.asarray(levels), bytes=True)[..., :3]
    return Image.blend(photo.convert("L").convert("RGB"), Image.fromarray(np.ascontiguousarray(colours)), HEAT)


def kept_patches(photo: Image.Image, kept: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """Grey the patches of a photograph out whose indices are not among `kept` (K,)."""
    mask = np.zeros(grid[0] * grid[1], dtype=np.uint8)
    mask[kept] = 255
    shown = Image.fromarray(mask.reshape(grid)).resize(photo.size, Image.Resampling.NEAREST)
    ghost = Image.blend(photo.convert("L").convert("RGB"), Image.new("RGB", photo.size, GREY), DROPPED)
    return Image.composite(photo, ghost, shown)


def picture_of(view: np.ndarray) -> Image.Image:
    """Return a uint8 array (3, H, W) as a picture."""
    return Image.fromarray(np.ascontiguousarray(view.transpose(1, 2, 0)))


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
        if tile.frame is not None:
            pen.rectangle((x, below, x + row.side - 1, below + row.side - 1), outline=tile.frame, width=FRAME)
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
