"""The demo images: the files, their independence of how many there are, and that the parts alone tell the class."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.demo.birds import SPECIES, Plumage, paint_bird
from pipelines.demo.images import MARKER, generate_demo_images
from pipelines.demo.scenes import draw_bird

COUNTS = {"train": 12, "test": 6}
CHANCE = 1 / len(SPECIES)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 x (12 + 6) images, small for speed."""
    folder = tmp_path_factory.mktemp("demo") / "images"
    generate_demo_images(folder, seed=3, train_per_class=COUNTS["train"], test_per_class=COUNTS["test"], size=64)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def nearest_accuracy(train: NDArray[Any], test: NDArray[Any]) -> float:
    """Return the share of `test` (classes, n, d) whose nearest vector of `train` (classes, m, d) is of its class."""
    gallery = train.reshape(-1, train.shape[-1])
    distances = np.abs(test[:, :, None] - gallery).sum(-1)
    found = distances.argmin(-1) // train.shape[1]
    return float((found == np.arange(len(test))[:, None]).mean())


def test_layout_and_balance(images: Path) -> None:
    for split, count in COUNTS.items():
        folders = sorted(path.relative_to(images / split) for path in (images / split).glob("*/*"))
        assert folders == sorted(Path(each.family, each.name) for each in SPECIES)
        for folder in folders:
            names = sorted(path.name for path in (images / split / folder).iterdir())
            assert names == [f"{number:04d}.jpg" for number in range(count)]
    assert len({each.family for each in SPECIES}) == 4


def test_species_of_a_family_differ_in_two_parts_or_more() -> None:
    parts = {each: (each.beak, each.bars, each.head, each.tail_tip) for each in SPECIES}
    for one, other in combinations(SPECIES, 2):
        if one.family == other.family:
            assert sum(a != b for a, b in zip(parts[one], parts[other], strict=True)) >= 2


def test_jpegs_decode_at_the_size_asked_for(tmp_path: Path) -> None:
    generate_demo_images(tmp_path, train_per_class=1, test_per_class=1, size=80)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 2 * len(SPECIES)
    for path in files:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (80, 80))
            assert np.asarray(picture).std() > 5


def test_images_do_not_depend_on_how_many_there_are(images: Path, tmp_path: Path) -> None:
    generate_demo_images(tmp_path, seed=3, train_per_class=2, test_per_class=1, size=64)
    fewer, more = contents(tmp_path), contents(images)
    assert len(fewer) == 3 * len(SPECIES)
    assert all(more[name] == data for name, data in fewer.items())
    assert len(set(more.values())) == len(more), "no image comes twice"


def test_another_seed_gives_other_images(images: Path, tmp_path: Path) -> None:
    generate_demo_images(tmp_path, seed=4, train_per_class=1, test_per_class=0, size=64)
    others, images_there = contents(tmp_path), contents(images)
    assert all(images_there[name] != data for name, data in others.items())


def test_a_complete_set_is_left_alone(tmp_path: Path) -> None:
    generate_demo_images(tmp_path, train_per_class=1, test_per_class=0, size=32)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    generate_demo_images(str(tmp_path), train_per_class=1, test_per_class=0, size=32)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(ValueError, match=r"train_per_class=1, not 2.*another folder"):
        generate_demo_images(tmp_path, train_per_class=2, test_per_class=0, size=32)


@pytest.mark.parametrize("name", ["holiday.jpg", MARKER])
def test_a_foreign_folder_is_refused_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not ours")
    with pytest.raises(ValueError, match="name another folder") as error:
        generate_demo_images(tmp_path, train_per_class=1, test_per_class=1, size=32)
    assert str(tmp_path) in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_set_is_refused(tmp_path: Path) -> None:
    generate_demo_images(tmp_path, train_per_class=1, test_per_class=0, size=32)
    (tmp_path / MARKER).unlink()
    with pytest.raises(ValueError, match="interrupted"):
        generate_demo_images(tmp_path, train_per_class=1, test_per_class=0, size=32)


def test_colours_do_not_tell_the_class(images: Path) -> None:
    def histograms(split: str) -> NDArray[Any]:
        return np.array([[histogram(path) for path in class_files(images, split, index)] for index in range(16)])

    assert nearest_accuracy(histograms("train"), histograms("test")) < 2 * CHANCE


def class_files(images: Path, split: str, index: int) -> list[Path]:
    return sorted((images / split / SPECIES[index].family / SPECIES[index].name).iterdir())


def histogram(path: Path) -> NDArray[Any]:
    """Return the joint RGB histogram, 6 bins a channel."""
    pixels = np.asarray(Image.open(path)).reshape(-1, 3)
    return np.histogramdd(pixels, bins=6, range=[(0, 256)] * 3)[0].ravel() / len(pixels)


def test_parts_tell_the_class() -> None:
    """Whoever is shown the bird upright sees its species at any colours, at a resolution of 64 pixels."""
    train = np.array([[edges(index, number) for number in range(4)] for index in range(16)])
    test = np.array([[edges(index, number) for number in range(4, 6)] for index in range(16)])
    assert nearest_accuracy(train, test) > 0.8


def edges(index: int, number: int) -> NDArray[Any]:
    """Return the strength of the edges of a bird without a pose or a background, (64 * 64,)."""
    plumage = Plumage.sample(np.random.default_rng([index, number]))
    colours, cover = paint_bird(SPECIES[index], plumage, 128)
    grey = cv2.resize(colours.mean(-1) * cover + 0.5 * (1 - cover), (64, 64), interpolation=cv2.INTER_AREA)
    strength = np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1))
    return cv2.GaussianBlur(strength, (0, 0), 1.5).ravel()


def test_without_nuisances_a_species_has_one_picture() -> None:
    plates = [
        draw_bird(each, np.random.default_rng(number), 64, nuisances=False) for each in SPECIES for number in (0, 1)
    ]
    assert all(np.array_equal(plates[2 * index], plates[2 * index + 1]) for index in range(16))
    assert all(not np.array_equal(plates[2 * a], plates[2 * b]) for a, b in combinations(range(16), 2))
