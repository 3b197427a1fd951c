"""Views: a pure function of image and seed, with the statistics of the paper's recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from lodisc.views import GaussianBlur, TwoViews, ViewConfig, eval_view, normalise

PLAIN: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "jitter_probability": 0.0,
    "grey_probability": 0.0,
    "blur_probability": (0.0, 0.0),
    "solarise_probability": 0.0,
    "flip_probability": 0.0,
}


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((200, 200), Image.Resampling.BICUBIC)


def test_views_are_a_function_of_the_seed(photo: Image.Image) -> None:
    draw = TwoViews(ViewConfig(), 64)
    first = draw(photo, 5)
    torch.rand(3)  # what happened between two calls does not matter
    again, other = draw(photo, 5), draw(photo, 6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1])
    assert first[0].shape == (3, 64, 64) and first[0].dtype == np.uint8


def test_blur_and_solarise_are_asymmetric(photo: Image.Image) -> None:
    """View 1 is always blurred and never solarised; view 2 the other way round, at the recipe's rates."""
    config = ViewConfig(**{**PLAIN, "blur_probability": (1.0, 0.1), "solarise_probability": 0.2})
    draw = TwoViews(config, 48)
    sharp, _ = TwoViews(ViewConfig(**PLAIN), 48)(photo, 0)
    # With the whole image as crop, only the aspect ratio of the crop varies; measure on what stays fixed: brightness.
    first, second = zip(*(draw(photo, seed) for seed in range(400)), strict=True)
    solarised = [np.abs(view.mean() - sharp.mean()) > 15 for view in second]
    assert not any(np.abs(view.mean() - sharp.mean()) > 15 for view in first)
    assert np.mean(solarised) == pytest.approx(0.2, abs=0.06)


def test_blur_matches_its_reference(photo: Image.Image) -> None:
    torch.manual_seed(3)
    radius = float(torch.empty(()).uniform_(0.1, 2.0))
    torch.manual_seed(3)
    blurred = GaussianBlur((0.1, 2.0))(photo)
    assert np.array_equal(np.asarray(blurred), np.asarray(photo.filter(ImageFilter.GaussianBlur(radius))))
    # PIL approximates a Gaussian by boxes: within a few grey levels of torchvision's exact one.
    exact = v2.functional.gaussian_blur(v2.functional.pil_to_tensor(photo), [15, 15], [radius, radius])
    difference = np.asarray(blurred).transpose(2, 0, 1).astype(int) - exact.numpy().astype(int)
    assert np.abs(difference)[:, 10:-10, 10:-10].mean() < 3


def test_eval_view_is_the_central_crop() -> None:
    image = Image.new("RGB", (300, 200))
    image.paste((255, 0, 0), (50, 0, 250, 200))
    view = eval_view(image, 64)
    assert view.shape == (3, 64, 64)
    assert view[0].min() == 255 and view[1].max() == 0


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
