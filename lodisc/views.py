"""Views of an image: the two random views that the contrast compares, and the fixed view that evaluation uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """BYOL's asymmetric pair of augmentations, as MoCo v3 uses them (the defaults are the paper's).

    Attributes:
        crop_scale: smallest and largest area of the random resized crop, as a fraction of the image.
        jitter: strength of brightness, contrast, saturation and hue jitter.
        jitter_probability: probability of colour jitter.
        grey_probability: probability of dropping colour.
        blur_sigma: range of the Gaussian blur's standard deviation, in pixels of the view.
        blur_probability: probability of blur in view 1 and in view 2.
        solarise_probability: probability of solarising, view 2 only.
        flip_probability: probability of a horizontal flip.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: tuple[float, float] = (1.0, 0.1)
    solarise_probability: float = 0.2
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"views.crop_scale must satisfy 0 < smallest <= largest <= 1, got {self.crop_scale}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"views.blur_sigma must satisfy 0 < smallest <= largest, got {self.blur_sigma}")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError(f"views.jitter must be >= 0, its hue (last) at most 0.5, got {self.jitter}")
        probabilities = {
            "jitter_probability": [self.jitter_probability],
            "grey_probability": [self.grey_probability],
            "blur_probability": self.blur_probability,
            "solarise_probability": [self.solarise_probability],
            "flip_probability": [self.flip_probability],
        }
        for name, values in probabilities.items():
            if not all(0 <= value <= 1 for value in values):
                raise ValueError(f"views.{name} must lie in [0, 1], got {getattr(self, name)}")


class GaussianBlur(torch.nn.Module):
    """Blur a PIL image with a random sigma. (torchvision's own blur leaves PIL and is several times slower here.)"""

    def __init__(self, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Image.Image) -> Image.Image:
        radius = float(torch.empty(()).uniform_(*self.sigma))
        return image.filter(ImageFilter.GaussianBlur(radius))


class TwoViews:
    """Draw two augmented views of an image: a pure function of the image and a seed.

    Every random choice comes from torch's global generator, which a call seeds: the views of a sample are the same
    wherever, and in whatever order, they are computed.
    """

    def __init__(self, config: ViewConfig, image_size: int) -> None:
        self.transforms = (_view(config, image_size, 0), _view(config, image_size, 1))

    def __call__(self, image: Image.Image, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return two uint8 arrays (3, H, W) of the RGB `image`, drawn by `seed` (0 <= seed < 2**63)."""
        # torch.manual_seed would seed CUDA too, which queues a traceback at every call where CUDA is not in use.
        torch.default_generator.manual_seed(seed)
        first, second = (_channels_first(transform(image)) for transform in self.transforms)
        return first, second


def _view(config: ViewConfig, image_size: int, which: int) -> v2.Compose:
    brightness, contrast, saturation, hue = config.jitter
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(image_size, scale=config.crop_scale, interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomApply([v2.ColorJitter(brightness, contrast, saturation, hue)], p=config.jitter_probability),
        v2.RandomGrayscale(p=config.grey_probability),
        v2.RandomApply([GaussianBlur(config.blur_sigma)], p=config.blur_probability[which]),
    ]
    if which == 1:
        steps.append(v2.RandomSolarize(threshold=128, p=config.solarise_probability))
    steps.append(v2.RandomHorizontalFlip(p=config.flip_probability))
    return v2.Compose(steps)


def eval_view(image: Image.Image, image_size: int) -> np.ndarray:
    """Return the central view of an RGB image as uint8 (3, image_size, image_size).

    The short side is resized to 256/224 of `image_size` before the crop, the ImageNet convention.
    """
    crop = v2.Compose(
        [
            v2.Resize(round(image_size * 256 / 224), interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(image_size),
        ]
    )
    return _channels_first(crop(image))


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 images (B, 3, H, W) into ImageNet-normalised float32 on the same device."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
