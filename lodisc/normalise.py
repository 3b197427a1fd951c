"""From the uint8 images that are handed about to what an encoder takes."""

from __future__ import annotations

import torch

from lodisc.views import IMAGENET_MEAN, IMAGENET_STD


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 images (B, 3, H, W) into ImageNet-normalised float32 on the same device."""
    mean = 255 * torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    # In place: on a CPU each new float32 tensor costs more than the arithmetic.
    return images.to(torch.float32, copy=True).sub_(mean).div_(std)
