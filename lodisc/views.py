"""Views of an image: the two random views that the contrast compares, and the fixed view that evaluation uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lodisc import pixels as px
from lodisc.config import ViewConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REDUCTIONS = (8, 4, 2)


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image, in whole pixels of the image at its full size."""

    left: int
    top: int
    width: int
    height: int

    def of(self, image: np.ndarray, reduction: int) -> np.ndarray:
        """Return the rectangle of an `image` (H, W, C) that has 1/`reduction` of the full size, as a view on it."""
        left, top = round(self.left / reduction), round(self.top / reduction)
        right, bottom = round((self.left + self.width) / reduction), round((self.top + self.height) / reduction)
        return image[top:bottom, left:right]


class TwoViews:
    """Draw two augmented views of an image: a pure function of the image and a seed.

    The distribution is that of torchvision's RandomResizedCrop (bicubic, antialiased), ColorJitter, RandomGrayscale,
    Gaussian blur, RandomSolarize and RandomHorizontalFlip in this order, as BYOL (arXiv 2006.07733, table 6) has it.
    """

    def __init__(self, config: ViewConfig, image_size: int) -> None:
        self.config, self.image_size = config, image_size

    def __call__(
        self, size: tuple[int, int], load: Callable[[int], Image.Image], seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return two uint8 arrays (3, image_size, image_size), drawn by `seed`.

        Args:
            size: width and height of the image.
            load: called once, with 1, 2, 4 or 8: by how much both views would shrink the image anyway. Returns it as
                RGB, with its sides divided by that number, or by a smaller one of these. (A JPEG is decoded at a
                fraction of its size much faster than shrunk later.)
            seed: not negative.
        """
        rng = np.random.default_rng(seed)
        crops = self._crops(size, rng)
        image = np.asarray(load(reduction_for(crops, self.image_size)))
        reduction = round(size[0] / image.shape[1])
        first, second = (self._view(crop.of(image, reduction), which, rng) for which, crop in enumerate(crops))
        return first, second

    def crops(self, size: tuple[int, int], seed: int) -> list[Crop]:
        """Return the rectangles that the two views drawn by `seed` show, of an image of this width and height."""
        return self._crops(size, np.random.default_rng(seed))

    def _crops(self, size: tuple[int, int], rng: np.random.Generator) -> list[Crop]:
        return [random_crop(size, self.config.crop_scale, rng) for _ in range(2)]

    def _view(self, crop: np.ndarray, which: int, rng: np.random.Generator) -> np.ndarray:
        config = self.config
        view = px.resize(crop, self.image_size)
        if rng.random() < config.jitter_probability:
            view = px.jitter(view, config.jitter, rng)
        if rng.random() < config.grey_probability:
            view = px.grey(view)
        if rng.random() < config.blur_probability[which]:
            view = px.blur(view, rng.uniform(*config.blur_sigma))
        if which == 1 and rng.random() < config.solarise_probability:
            view = px.solarise(view)
        if rng.random() < config.flip_probability:
            view = view[:, ::-1]
        return np.ascontiguousarray(view.transpose(2, 0, 1))


class CropAndFlip:
    """Draw the view that training with labels uses, a random resized crop, flipped by chance.

    A pure function of the image and a seed, distributed as torchvision's RandomResizedCrop (bicubic, antialiased) and
    RandomHorizontalFlip.
    """

    def __init__(self, crop_scale: tuple[float, float], image_size: int) -> None:
        self.crop_scale, self.image_size = crop_scale, image_size

    def __call__(self, size: tuple[int, int], load: Callable[[int], Image.Image], seed: int) -> np.ndarray:
        """Return a uint8 array (3, image_size, image_size), drawn by `seed`; the arguments are those of `TwoViews`."""
        rng = np.random.default_rng(seed)
        crop = random_crop(size, self.crop_scale, rng)
        image = np.asarray(load(reduction_for([crop], self.image_size)))
        view = px.resize(crop.of(image, round(size[0] / image.shape[1])), self.image_size)
        if rng.random() < 0.5:
            view = view[:, ::-1]
        return np.ascontiguousarray(view.transpose(2, 0, 1))


def random_crop(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Crop:
    """Draw a rectangle of uniform area and log-uniform aspect ratio between 3/4 and 4/3 (Inception's crop).

    Where ten draws do not fit into the image, it is the largest central rectangle of an allowed aspect ratio.

    Args:
        size: width and height of the image.
        scale: smallest and largest area, as fractions of the image's.
        rng: where the draw comes from.
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return Crop((width - w) // 2, (height - h) // 2, w, h)


def reduction_for(crops: Sequence[Crop], image_size: int) -> int:
    """Return the largest of 1, 2, 4 and 8 by which the image can shrink so that no crop is smaller than its view."""
    smallest = min(min(crop.width, crop.height) for crop in crops)
    return next((r for r in REDUCTIONS if smallest >= r * image_size), 1)


def eval_short_side(image_size: int) -> int:
    """Return to how many pixels `eval_view` resizes the short side: 256/224 of `image_size`, ImageNet's convention."""
    return round(image_size * 256 / 224)


def eval_view(image: Image.Image, image_size: int) -> np.ndarray:
    """Return the central view of an RGB image as uint8 (3, image_size, image_size).

    Before the crop the image is resized, bicubic and antialiased, until its short side is `eval_short_side` long.
    """
    short = eval_short_side(image_size)
    # As torchvision's Resize rounds: the long side down.
    width, height = (max(short, short * side // min(image.size)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    crop = resized.crop((left, top, left + image_size, top + image_size))
    return np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1))
