"""Sheets of pictures: what is drawn where, read back from their pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipelines.sheets import GAP, MARGIN, PAPER, Row, Sheet, Tile, draw, places


def square(colour: tuple[int, int, int], side: int = 50) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_tiles_stand_side_by_side_at_their_size() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    row = Row([Tile(square(colour), first=place == 2) for place, colour in enumerate(colours)], side=90)
    assert places(row) == [0, 90 + GAP, 2 * (90 + GAP) + GAP]
    image = draw(Sheet("name", "", "", [row]))
    assert image.width == 3 * 90 + 3 * GAP + 2 * MARGIN
    top = image.height - MARGIN - 90
    for colour, left in zip(colours, places(row), strict=True):
        box = (MARGIN + left, top, MARGIN + left + 90, top + 90)
        assert (np.asarray(image.crop(box)) == colour).all()
        assert image.getpixel((box[0] - 1, top)) == PAPER and image.getpixel((box[2], top)) == PAPER


def test_titles_and_notes_take_room_only_where_there_are_some() -> None:
    def height(tile: Tile) -> int:
        return draw(Sheet("name", "title", "about", [Row([tile, Tile(square((0, 0, 0)))], 60)])).height

    plain = height(Tile(square((0, 0, 0))))
    assert plain < height(Tile(square((0, 0, 0)), note="note")) < height(Tile(square((0, 0, 0)), "title", "note"))


def test_long_texts_of_any_alphabet_stay_in_their_place() -> None:
    row = Row([Tile(square((0, 0, 0)), "Größe und Höhe " * 40, "ξ " * 99)], 80)
    image = draw(Sheet("name", "ä" * 500, "ж" * 500, [row]))
    assert image.width == 80 + 2 * MARGIN
    assert (np.asarray(image)[:, -MARGIN:] == PAPER).all()
