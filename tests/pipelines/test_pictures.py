"""Pictures and sheets: what is on them, and where it is drawn, read back from their pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipelines.pictures import (
    FRAME,
    GAP,
    MARGIN,
    OTHER,
    PAPER,
    SAME,
    SIDE,
    UNKNOWN,
    Row,
    Sheet,
    Tile,
    draw,
    neighbour_sheet,
    pivot_sheet,
    places,
)


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


def test_a_frame_lies_along_the_edges_of_its_tile() -> None:
    drawn = draw(Sheet("name", "", "", [Row([Tile(square((10, 20, 30)), frame=SAME)], side=50)]))
    tile = np.asarray(drawn)[drawn.height - MARGIN - 50 : drawn.height - MARGIN, MARGIN : MARGIN + 50]
    inner = tile[FRAME:-FRAME, FRAME:-FRAME]
    assert (inner == (10, 20, 30)).all() and (tile == SAME).all(axis=-1).sum() == 50**2 - inner[..., 0].size


def photographs(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack(
        [np.broadcast_to(np.array(colour, dtype=np.uint8)[:, None, None], (3, 64, 64)) for colour in colours]
    )


def shown(tile: Tile) -> np.ndarray:
    return np.asarray(tile.picture, dtype=np.int32)


def test_kept_patches_stay_in_colour_at_their_place() -> None:
    scores = np.array([[0.0, -1.0, -2.0, -9.0]])
    (row,) = pivot_sheet(photographs((200, 40, 40)), scores, np.array([[0, 1]]), (2, 2)).rows
    photo, heat, kept = map(shown, row.tiles)
    half = SIDE // 2
    assert (photo == (200, 40, 40)).all() and (kept[:half] == (200, 40, 40)).all()
    assert np.ptp(kept[half:], axis=-1).max() == 0, "dropped patches have no colour"
    assert heat[10, 10].sum() > heat[10, -10].sum() > heat[-10, -10].sum(), "brighter where the score is higher"


def test_scores_are_normalised_image_by_image() -> None:
    scores = np.array([[0.0, 1.0, 2.0, 3.0]])
    both = np.concatenate([scores, 100 * scores - 7])
    images = photographs((90, 90, 90), (90, 90, 90))
    first, second = pivot_sheet(images, both, np.zeros((2, 1), dtype=int), (2, 2)).rows
    assert (shown(first.tiles[1]) == shown(second.tiles[1])).all()


def test_equal_scores_and_many_images_are_drawn() -> None:
    for count, size, rows in ((1, 32, 1), (5, 64, 3), (8, 224, 4)):
        images = np.zeros((count, 3, size, size), dtype=np.uint8)
        sheet = pivot_sheet(images, np.zeros((count, 16), dtype=np.float32), np.zeros((count, 4), dtype=int), (4, 4))
        assert len(sheet.rows) == rows and sum(len(row.tiles) for row in sheet.rows) == 3 * count
        assert draw(sheet).mode == "RGB" and draw(sheet).width <= 1200


def test_frames_say_whether_the_label_is_the_same() -> None:
    queries = photographs((10, 10, 10), (20, 20, 20))
    neighbours = np.stack([photographs((30, 30, 30), (40, 40, 40))] * 2)
    similarity = np.array([[0.9, 0.5], [0.8, 0.1]])
    labels = [["apple", "pear"], ["apple", "a name far too long to fit below a picture"]]

    def frames(sheet: Sheet) -> list[tuple[int, int, int] | None]:
        return [tile.frame for row in sheet.rows for tile in row.tiles]

    labelled = neighbour_sheet(queries, neighbours, ["apple", "pear"], labels, similarity)
    assert frames(labelled) == [None, SAME, OTHER, None, OTHER, OTHER]
    assert [tile.note for tile in labelled.rows[0].tiles] == ["apple", "0.90  apple", "0.50  pear"]
    assert (shown(labelled.rows[0].tiles[2]) == 40).all() and draw(labelled).mode == "RGB"
    unlabelled = neighbour_sheet(queries, neighbours, None, None, similarity)
    assert frames(unlabelled) == [None, UNKNOWN, UNKNOWN] * 2
