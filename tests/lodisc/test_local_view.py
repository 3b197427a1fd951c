"""The pixel view is zero exactly outside the kept patches."""

from __future__ import annotations

import pytest
import torch

from lodisc.local_view import mask_pixels


@pytest.mark.parametrize("patch_size", [(8, 8), (8, 4)])
def test_pixels_outside_kept_patches_are_zero_and_no_others(patch_size: tuple[int, int]) -> None:
    height, width = patch_size
    images = torch.rand(2, 3, 24, 16) + 1
    rows, columns = 24 // height, 16 // width
    kept = torch.tensor([[0, 3], [1, rows * columns - 1]])
    masked = mask_pixels(images, kept, patch_size)
    for image in range(2):
        for row in range(rows):
            for column in range(columns):
                patch = (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
                visible = row * columns + column in kept[image].tolist()
                expected = images[image][:, *patch] * visible
                assert torch.equal(masked[image][:, *patch], expected)
