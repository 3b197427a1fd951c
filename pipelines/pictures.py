"""Pictures of what an encoder looks at and what it finds alike."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

TILE = 160  # side of a picture on the sheet, in pixels
GAP = 6
MARGIN = 14
LINE = 20  # height of a line of text
FRAME = 5
FONT_SIZE = 13
INK, FAINT, PAPER = (34, 34, 34), (110, 110, 110), (255, 255, 255)
# From Okabe and Ito's palette, told apart with red-green blindness too.
SAME, OTHER, UNKNOWN = (0, 158, 115), (213, 94, 0), (190, 190, 190)
GREY = (128, 128, 128)  # of dropped patches: neither dark nor bright photographs are taken for it
DROPPED = 0.72  # opacity of that grey
HEAT = 0.62  # opacity of the heat map


def pivot_overlays(images: ArrayLike, scores: ArrayLike, kept: ArrayLike, grid: tuple[int, int]) -> Image.Image:
    """Draw where an encoder's pivots are: of each image the photograph, its scores as heat, the patches it keeps.

    Args:
        images: (B, 3, H, W) uint8, RGB.
        scores: (B, N) log scores; coloured from the lowest to the highest of each image, outliers clipped.
        kept: (B, K) indices of the kept patches; the others are greyed.
        grid: (rows, columns) of patches; rows * columns = N.
    """
    photos, scores, kept = np.asarray(images), np.asarray(scores, dtype=np.float32), np.asarray(kept)
    titles = ("photograph", "pivot scores", f"kept, {kept.shape[1]} of {scores.shape[1]}")
    across = 1 if len(photos) <= 3 else 2
    group = len(titles) * (TILE + GAP) - GAP
    rows = -(-len(photos) // across)
    sheet, draw = _sheet(across * (group + 2 * MARGIN), LINE + rows * (TILE + GAP) - GAP + 2 * MARGIN)
    for column in range(across):
        for place, title in enumerate(titles):
            x = MARGIN + column * (group + 2 * MARGIN) + place * (TILE + GAP)
            draw.text((x, MARGIN - 4), title, FAINT, _font())
    for number, (photo, score, indices) in enumerate(zip(photos, scores, kept, strict=True)):
        row, column = number % rows, number // rows
        tile = _tile(photo)
        for place, picture in enumerate((tile, heat_map(tile, score, grid), kept_patches(tile, indices, grid))):
            x = MARGIN + column * (group + 2 * MARGIN) + place * (TILE + GAP)
            sheet.paste(picture, (x, MARGIN + LINE + row * (TILE + GAP)))
    return sheet


def neighbour_sheet(
    query_images: ArrayLike,
    neighbour_images: ArrayLike,
    query_labels: Sequence[str | None] | None,
    neighbour_labels: Sequence[Sequence[str | None]] | None,
    similarity: ArrayLike,
) -> Image.Image:
    """Draw queries, each followed by its nearest neighbours, framed green for the query's label and red for another.

    Args:
        query_images: (Q, 3, H, W) uint8, RGB.
        neighbour_images: (Q, k, 3, H, W) uint8, nearest first.
        query_labels: Q labels, None where there are none; frames are grey where a query or neighbour has none.
        neighbour_labels: Q rows of k labels.
        similarity: (Q, k) cosine similarities, written below the neighbours.
    """
    queries, neighbours, similarity = np.asarray(query_images), np.asarray(neighbour_images), np.asarray(similarity)
    count, width = neighbours.shape[:2]
    cell = TILE + 2 * FRAME
    height = cell + LINE + GAP
    sheet, draw = _sheet(
        2 * MARGIN + cell + 3 * GAP + width * (cell + GAP) - GAP, 2 * MARGIN + LINE + count * height - GAP
    )
    start = MARGIN + cell + 3 * GAP
    draw.text((MARGIN + FRAME, MARGIN - 4), "query", FAINT, _font())
    legend = "; green: same label, red: another" if query_labels and any(query_labels) else ""
    draw.text((start + FRAME, MARGIN - 4), f"nearest first, with cosine similarity{legend}", FAINT, _font())
    for row in range(count):
        y = MARGIN + LINE + row * height
        label = query_labels[row] if query_labels else None
        _cell(sheet, draw, (MARGIN, y), queries[row], PAPER, label or "")
        for place in range(width):
            found = neighbour_labels[row][place] if neighbour_labels else None
            frame = UNKNOWN if label is None or found is None else SAME if found == label else OTHER
            caption = f"{similarity[row, place]:.2f}  {found or ''}"
            _cell(sheet, draw, (start + place * (cell + GAP), y), neighbours[row, place], frame, caption)
    return sheet


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


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def picture_of(view: np.ndarray) -> Image.Image:
    """Return a uint8 array (3, H, W) as a picture."""
    return Image.fromarray(np.ascontiguousarray(view.transpose(1, 2, 0)))


def _tile(photo: np.ndarray) -> Image.Image:
    """Return a (3, H, W) photograph as a square picture; views are square, whatever the photograph was."""
    return picture_of(photo).resize((TILE, TILE), Image.Resampling.BICUBIC)


def _cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    photo: np.ndarray,
    frame: tuple[int, int, int],
    caption: str,
) -> None:
    x, y = corner
    draw.rectangle((x, y, x + TILE + 2 * FRAME - 1, y + TILE + 2 * FRAME - 1), frame)
    sheet.paste(_tile(photo), (x + FRAME, y + FRAME))
    draw.text((x + FRAME, y + TILE + 2 * FRAME + 2), _shortened(draw, caption), INK, _font())


def _shortened(draw: ImageDraw.ImageDraw, text: str) -> str:
    """Cut a text that is wider than a picture."""
    if draw.textlength(text, _font()) <= TILE:
        return text
    while draw.textlength(f"{text}…", _font()) > TILE:
        text = text[:-1]
    return f"{text}…"
