"""The pictures: what is drawn where, read back from their pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipelines.pictures import FRAME, GAP, LINE, MARGIN, OTHER, SAME, TILE, UNKNOWN, neighbour_sheet, pivot_overlays

CELL = TILE + 2 * FRAME


def pixels(picture: Image.Image, x: int, y: int) -> np.ndarray:
    """One tile of a sheet, as signed numbers."""
    return np.asarray(picture.crop((x, y, x + TILE, y + TILE)), dtype=np.int32)


def photographs(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack(
        [np.broadcast_to(np.array(colour, dtype=np.uint8)[:, None, None], (3, 64, 64)) for colour in colours]
    )


def test_kept_patches_stay_in_colour_at_their_place() -> None:
    red = photographs((200, 40, 40))
    scores = np.array([[0.0, -1.0, -2.0, -9.0]])
    sheet = pivot_overlays(red, scores, np.array([[0, 1]]), (2, 2))
    y = MARGIN + LINE
    photo, heat, kept = (pixels(sheet, MARGIN + place * (TILE + GAP), y) for place in range(3))
    half = TILE // 2
    assert (photo == (200, 40, 40)).all()
    assert (kept[:half] == (200, 40, 40)).all()
    assert np.ptp(kept[half:], axis=-1).max() == 0, "dropped patches have no colour"
    assert heat[10, 10].sum() > heat[-10, 10].sum() > heat[-10, -10].sum(), "brighter where the score is higher"


def test_scores_are_normalised_image_by_image() -> None:
    images = photographs((90, 90, 90), (90, 90, 90))
    scores = np.array([[0.0, 1.0, 2.0, 3.0]])
    both = np.concatenate([scores, 100 * scores - 7])
    sheet = pivot_overlays(images, both, np.zeros((2, 1), dtype=int), (2, 2))
    first, second = (pixels(sheet, MARGIN + TILE + GAP, MARGIN + LINE + row * (TILE + GAP)) for row in range(2))
    assert (first == second).all()


def test_equal_scores_and_many_images_are_drawn() -> None:
    for count, size in ((1, 32), (5, 64), (8, 224)):
        images = np.zeros((count, 3, size, size), dtype=np.uint8)
        sheet = pivot_overlays(images, np.zeros((count, 16), dtype=np.float32), np.zeros((count, 4), dtype=int), (4, 4))
        assert sheet.mode == "RGB" and sheet.width <= 1100 and sheet.height <= 800


def test_frames_say_whether_the_label_is_the_same() -> None:
    queries = photographs((10, 10, 10), (20, 20, 20))
    neighbours = np.stack([photographs((30, 30, 30), (40, 40, 40))] * 2)
    similarity = np.array([[0.9, 0.5], [0.8, 0.1]])
    labels = [["apple", "pear"], ["apple", "a name far too long to fit below a picture"]]
    corners = [
        (MARGIN + CELL + 3 * GAP + place * (CELL + GAP), MARGIN + LINE + row * (CELL + LINE + GAP))
        for row in range(2)
        for place in range(2)
    ]
    labelled = neighbour_sheet(queries, neighbours, ["apple", "pear"], labels, similarity)
    assert [labelled.getpixel(corner) for corner in corners] == [SAME, OTHER, OTHER, OTHER]
    unlabelled = neighbour_sheet(queries, neighbours, None, None, similarity)
    assert [unlabelled.getpixel(corner) for corner in corners] == [UNKNOWN] * 4
    x, y = corners[1]
    assert (pixels(labelled, x + FRAME, y + FRAME) == 40).all()
