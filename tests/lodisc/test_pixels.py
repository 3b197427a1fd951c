"""What augmentation does to pixels, against torchvision's transforms of PIL images."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from lodisc import pixels as px


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Smooth colours that reach both ends of the range, as a photograph's do."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[Image.Image], Image.Image]]] = {
    "darker": (lambda x: px.brightness(x, 0.6), lambda x: tv.adjust_brightness(x, 0.6)),
    "brighter": (lambda x: px.brightness(x, 1.4), lambda x: tv.adjust_brightness(x, 1.4)),
    "flatter": (lambda x: px.contrast(x, 0.6), lambda x: tv.adjust_contrast(x, 0.6)),
    "more contrast": (lambda x: px.contrast(x, 1.4), lambda x: tv.adjust_contrast(x, 1.4)),
    "paler": (lambda x: px.saturation(x, 0.8), lambda x: tv.adjust_saturation(x, 0.8)),
    "more colour": (lambda x: px.saturation(x, 1.2), lambda x: tv.adjust_saturation(x, 1.2)),
    "hue back": (lambda x: px.hue(x, -0.1), lambda x: tv.adjust_hue(x, -0.1)),
    "hue on": (lambda x: px.hue(x, 0.3), lambda x: tv.adjust_hue(x, 0.3)),
    "grey": (px.grey, lambda x: tv.rgb_to_grayscale(x, 3)),
    "solarise": (px.solarise, lambda x: tv.solarize(x, 128)),
    "smaller": (lambda x: px.resize(x, 64), lambda x: tv.resize(x, [64, 64], InterpolationMode.BICUBIC)),
    "larger": (lambda x: px.resize(x, 224), lambda x: tv.resize(x, [224, 224], InterpolationMode.BICUBIC)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_torchvisions(photo: np.ndarray, name: str) -> None:
    ours, torchvisions = CHANGES[name]
    result = ours(photo)
    expected = np.asarray(torchvisions(Image.fromarray(photo)))
    assert result.shape == expected.shape and result.dtype == np.uint8
    difference = np.abs(result.astype(int) - expected.astype(int))
    # 8-bit hues are rounded differently by OpenCV and PIL, which shows in saturated colours.
    assert difference.mean() < (3 if "hue" in name else 1)
    assert not np.array_equal(result, photo)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_a_gaussian(photo: np.ndarray, sigma: float) -> None:
    result = px.blur(photo, sigma).astype(int)
    image = tv.pil_to_tensor(Image.fromarray(photo))
    exact = tv.gaussian_blur(image, [15, 15], [sigma, sigma]).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(result - exact)[8:-8, 8:-8].max() <= 2
    boxes = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma))).astype(int)
    assert np.abs(result - boxes).mean() < 2


def test_jitter_draws_each_change_in_its_range(photo: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    grey = np.full((4, 4, 3), 100, np.uint8)
    levels = [int(px.jitter(grey, (0.4, 0, 0, 0), rng)[0, 0, 0]) for _ in range(500)]
    assert min(levels) in range(60, 63) and max(levels) in range(138, 141)
    assert np.mean(levels) == pytest.approx(100, abs=3)
    assert np.array_equal(px.jitter(photo, (0, 0, 0, 0), rng), photo)


def test_jitter_order_is_random() -> None:
    """Contrast after brightness and brightness after contrast differ where values are cut off."""
    image = np.array([[[250, 250, 250], [0, 0, 0]]], np.uint8)
    seen = set()
    for seed in range(50):
        rng = np.random.default_rng(seed)
        order = rng.permutation(4).tolist()
        b, c = rng.uniform(0.2, 1.8), rng.uniform(0.2, 1.8)
        changes = (px.brightness, px.contrast) if order.index(0) < order.index(1) else (px.contrast, px.brightness)
        expected = changes[1](changes[0](image, b), c)
        assert np.array_equal(px.jitter(image, (0.8, 0.8, 0, 0), np.random.default_rng(seed)), expected)
        seen.add(changes[0].__name__)
    assert len(seen) == 2


def test_a_read_only_crop_is_taken_as_it_is(photo: np.ndarray, recwarn: pytest.WarningsRecorder) -> None:
    image = np.asarray(Image.fromarray(photo))
    assert px.resize(image[10:70, 5:90], 32).flags.c_contiguous
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]
