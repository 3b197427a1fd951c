"""Views: a pure function of image and seed, with the statistics of the paper's recipe."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from benchmarks.torchvision_views import torchvision_views
from lodisc.config import ViewConfig
from lodisc.normalise import normalise
from lodisc.pixels import resize
from lodisc.views import Crop, CropAndFlip, TwoViews, eval_short_side, eval_view, random_crop, reduction_for

PLAIN: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "jitter_probability": 0.0,
    "grey_probability": 0.0,
    "blur_probability": (0.0, 0.0),
    "solarise_probability": 0.0,
    "flip_probability": 0.0,
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((240, 200), Image.Resampling.BICUBIC)


def drawn(draw: TwoViews, photo: Image.Image, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return draw(photo.size, lambda reduction: photo, seed)


def test_views_are_a_function_of_the_seed(photo: Image.Image) -> None:
    draw = TwoViews(ViewConfig(), 64)
    first = drawn(draw, photo, 5)
    np.random.random(3), torch.rand(3)  # what happened between two calls does not matter
    again, other = drawn(draw, photo, 5), drawn(draw, photo, 6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1])
    assert first[0].shape == (3, 64, 64) and first[0].dtype == np.uint8


def test_blur_and_solarise_are_asymmetric(photo: Image.Image) -> None:
    """View 1 is always blurred and never solarised; view 2 the other way round, at the recipe's rates."""
    config = ViewConfig(**{**PLAIN, "blur_probability": (1.0, 0.1), "solarise_probability": 0.2})
    sharp, _ = drawn(TwoViews(ViewConfig(**PLAIN), 48), photo, 0)
    first, second = zip(*(drawn(TwoViews(config, 48), photo, seed) for seed in range(400)), strict=True)
    # With the whole image as crop, only the aspect ratio of the crop varies; measure on what stays fixed: brightness.
    solarised = [np.abs(view.mean() - sharp.mean()) > 15 for view in second]
    assert not any(np.abs(view.mean() - sharp.mean()) > 15 for view in first)
    assert np.mean(solarised) == pytest.approx(0.2, abs=0.06)


def test_the_view_of_labelled_training_is_a_crop_that_may_be_flipped(photo: Image.Image) -> None:
    draw, flips, reductions = CropAndFlip((0.3, 0.9), 32), 0, []

    def load(reduction: int) -> Image.Image:
        reductions.append(reduction)
        return photo

    for seed in range(100):
        view = draw(photo.size, load, seed)
        crop = random_crop(photo.size, (0.3, 0.9), np.random.default_rng(seed))
        assert reductions[-1] == reduction_for([crop], 32)
        expected = resize(crop.of(np.asarray(photo), 1), 32).transpose(2, 0, 1)
        flipped = np.array_equal(view, expected[:, :, ::-1])
        assert flipped or np.array_equal(view, expected)
        flips += flipped
    assert 35 <= flips <= 65 and set(reductions) == {2, 4}


def test_crops_lie_in_the_image_and_shrink_with_it(photo: Image.Image) -> None:
    rng = np.random.default_rng(0)
    for size in [(240, 200), (30, 200), (3000, 7), (1, 1)]:
        for _ in range(50):
            crop = random_crop(size, (0.08, 1.0), rng)
            assert 0 <= crop.left < crop.left + crop.width <= size[0]
            assert 0 <= crop.top < crop.top + crop.height <= size[1]
    assert random_crop((30, 200), (1.0, 1.0), rng) == Crop(0, 80, 30, 40)
    pixels = np.asarray(photo)
    assert Crop(40, 20, 80, 60).of(pixels[::2, ::2], 2).shape == (30, 40, 3)
    assert np.array_equal(Crop(40, 20, 80, 60).of(pixels, 1), pixels[20:80, 40:120])


def test_crops_are_what_the_views_of_that_seed_show(photo: Image.Image) -> None:
    draw = TwoViews(ViewConfig(**PLAIN | {"crop_scale": (0.1, 0.6)}), 48)
    for seed in range(3):
        crops = draw.crops(photo.size, seed)
        for crop, view in zip(crops, drawn(draw, photo, seed), strict=True):
            assert (resize(crop.of(np.asarray(photo), 1), 48).transpose(2, 0, 1) == view).all()
        assert crops[0] != crops[1]


def test_reduction_never_leaves_a_crop_smaller_than_its_view() -> None:
    assert reduction_for([Crop(0, 0, 500, 400), Crop(0, 0, 256, 127)], 64) == 1
    assert reduction_for([Crop(0, 0, 500, 400), Crop(0, 0, 256, 128)], 64) == 2
    assert reduction_for([Crop(0, 0, 5000, 4000)], 64) == 8


def test_a_jpeg_decoded_small_gives_the_views_of_the_shrunken_image(photo: Image.Image) -> None:
    """JPEGs are decoded at a fraction of their size where both views would shrink them anyway."""
    stream = io.BytesIO()
    photo.resize((960, 800), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    whole = Image.open(stream)
    whole.load()
    asked = []

    def decode(reduction: int) -> Image.Image:
        asked.append(reduction)
        image = Image.open(stream)
        image.draft("RGB", (960 // reduction, 800 // reduction))
        return image

    draw = TwoViews(ViewConfig(), 64)
    for seed in range(40):
        shrunken = draw((960, 800), whole.reduce, seed)
        for view, expected in zip(draw((960, 800), decode, seed), shrunken, strict=True):
            assert np.abs(view.astype(int) - expected.astype(int)).mean() < 4
    assert set(asked) == {2, 4, 8}


def statistics_of(view: np.ndarray) -> list[float]:
    """Describe a view (3, H, W): brightness, contrast, colourfulness, hue, sharpness, and where and how large it lies.

    The photograph's red rises to the right and its green downwards, so that channel means tell a crop's place, their
    differences between the halves its size and its flip.
    """
    pixels = view.astype(np.float64)
    grey = pixels.mean(0)
    left_right = grey[:, grey.shape[1] // 2 :].mean() - grey[:, : grey.shape[1] // 2].mean()
    top_bottom = grey[grey.shape[0] // 2 :].mean() - grey[: grey.shape[0] // 2].mean()
    sharpness = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return [*pixels.mean((1, 2)), grey.std(), pixels.std(0).mean(), left_right, top_bottom, sharpness]


@pytest.mark.slow
def test_views_are_distributed_as_torchvisions() -> None:
    """10,000 draws each: no statistic of the views tells ours from torchvision's (two-sample Kolmogorov-Smirnov)."""
    rise = np.linspace(40, 160, 96)
    noise = np.random.default_rng(1).normal(0, 40, (24, 24, 3))
    ramps = np.stack([*np.meshgrid(rise, rise), np.full((96, 96), 100.0)], axis=2)
    pixels = np.clip(ramps + cv2.resize(noise, (96, 96), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    photo, config = Image.fromarray(pixels), ViewConfig()
    draw, transforms = TwoViews(config, 32), torchvision_views(config, 32)
    torch.manual_seed(0)
    ours = np.array([[statistics_of(view) for view in drawn(draw, photo, seed)] for seed in range(10_000)])
    theirs = np.array(
        [[statistics_of(np.asarray(t(photo)).transpose(2, 0, 1)) for t in transforms] for _ in range(10_000)]
    )
    for view in range(2):
        for number in range(ours.shape[2]):
            test = ks_2samp(ours[:, view, number], theirs[:, view, number])
            # The critical distance of 1 in 1,000 is 0.0276; rounding and the Gaussian's form add next to nothing.
            assert test.statistic < 0.03, f"view {view + 1}, statistic {number}: {test}"


def test_eval_view_is_the_central_crop() -> None:
    image = Image.new("RGB", (300, 200))
    image.paste((255, 0, 0), (50, 0, 250, 200))
    view = eval_view(image, 64)
    assert view.shape == (3, 64, 64)
    assert view[0].min() == 255 and view[1].max() == 0


def test_eval_view_is_that_of_torchvision() -> None:
    random = np.random.default_rng(0)
    for width, height, size in random.integers((1, 1, 8), (300, 300, 100), (60, 3)).tolist():
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        resize = v2.Resize(eval_short_side(size), interpolation=v2.InterpolationMode.BICUBIC)
        expected = np.asarray(v2.CenterCrop(size)(resize(image))).transpose(2, 0, 1)
        assert np.array_equal(eval_view(image, size), expected), (width, height, size)


def test_normalise_has_imagenet_statistics() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    result = normalise(images)
    assert result.dtype == torch.float32
    assert torch.allclose(result[0, :, 0, 0], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    assert torch.allclose(result[1, :, 0, 0], torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", (0.5, 0.2)),
        ("blur_sigma", (0.0, 1.0)),
        ("jitter", (0.4, 0.4, 0.2, 0.6)),
        ("grey_probability", 1.5),
        ("blur_probability", (0.5, -0.1)),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"views.{field}"):
        ViewConfig(**{field: value})
