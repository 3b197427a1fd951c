"""The local view as pixels: the image with its dropped patches blacked out (the reference's form).

The other form, `tokens`, needs no image: the encoder leaves the dropped patches out of its sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_pixels(images: Tensor, kept: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Set every patch that is not kept to 0, the mean colour of normalised images.

    Args:
        images: (B, 3, H, W), normalised.
        kept: (B, K) int64 indices of patches, row by row over the image.
        patch_size: (height, width) of a patch in pixels; H and W are multiples of it.
    """
    height, width = images.shape[-2] // patch_size[0], images.shape[-1] // patch_size[1]
    mask = torch.zeros(len(images), height * width, dtype=images.dtype, device=images.device)
    mask.scatter_(1, kept, 1.0)
    mask = mask.view(-1, 1, height, width)
    mask = mask.repeat_interleave(patch_size[0], dim=2).repeat_interleave(patch_size[1], dim=3)
    return images * mask
