"""What the tests share: one real Ray, real photographs, small folders of real JPEG files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.environment import REPOSITORY

SHAPES = ("ellipse", "rectangle", "triangle")
COLOURS = ((200, 60, 50), (60, 150, 70), (60, 90, 190), (220, 180, 50))


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of the tests' own: Ray keeps a token there, matplotlib its fonts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def ray_session(home: Path) -> Iterator[None]:
    """One Ray with 2 CPUs for the whole session, as starting it takes seconds."""
    from cluster.connect import connect

    with pytest.MonkeyPatch.context() as patch:
        # A worker unpickles a test's functions by importing the test.
        patch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.delenv("RAY_ADDRESS", raising=False)
        with connect(num_cpus=2):
            yield


@pytest.fixture(scope="session")
def grocery() -> Path:
    """The Grocery Store photographs that lie beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data" / "grocery"
    if not folder.is_dir():
        pytest.skip("the grocery photographs are not beside the repository (../shared/data/grocery)")
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return `make(classes=2, per_class=8, size=48)`: a new folder `class-0/000.jpg ...` of JPEG files.

    A class is a colour and shape; place, extent and background vary from image to image, the same in every call.
    """

    def make(classes: int = 2, per_class: int = 8, size: int = 48) -> Path:
        return make_images(tmp_path_factory.mktemp("images"), classes, per_class, size)

    return make


def make_images(root: Path, classes: int = 2, per_class: int = 8, size: int = 48) -> Path:
    """Write the images of `image_folder` to a folder, and return it."""
    random = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            draw_shape(label, size, random).save(folder / f"{number:03d}.jpg", quality=90)
    return root


def draw_shape(label: int, size: int, random: np.random.Generator) -> Image.Image:
    image = Image.fromarray(random.integers(90, 170, (size, size, 3), dtype=np.uint8))
    x, y = random.uniform(0, size / 3, 2)
    width, height = random.uniform(size / 3, size / 1.6, 2)
    right, bottom = x + width, y + height
    draw, colour = ImageDraw.Draw(image), COLOURS[label % len(COLOURS)]
    match SHAPES[label % len(SHAPES)]:
        case "ellipse":
            draw.ellipse((x, y, right, bottom), fill=colour)
        case "rectangle":
            draw.rectangle((x, y, right, bottom), fill=colour)
        case _:
            draw.polygon([(x, bottom), ((x + right) / 2, y), (right, bottom)], fill=colour)
    return image
