"""The two views as torchvision's transforms of PIL images: what ours are timed beside, and compared with in tests."""

from __future__ import annotations

import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from lodisc.config import ViewConfig


def torchvision_views(config: ViewConfig, image_size: int) -> list[v2.Compose]:
    """Return a transform for each view, PIL image to PIL image; their draws come from torch's global generator."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(*config.blur_sigma))))

    def view(which: int) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomResizedCrop(image_size, scale=config.crop_scale, interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomApply([v2.ColorJitter(*config.jitter)], p=config.jitter_probability),
                v2.RandomGrayscale(p=config.grey_probability),
                v2.RandomApply([v2.Lambda(blur)], p=config.blur_probability[which]),
                v2.RandomSolarize(threshold=128, p=config.solarise_probability if which == 1 else 0.0),
                v2.RandomHorizontalFlip(p=config.flip_probability),
            ]
        )

    return [view(0), view(1)]
