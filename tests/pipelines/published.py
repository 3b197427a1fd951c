"""Small copies of the published data sets, laid out on disk as their authors' archives are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.pipelines.bad_images import photograph

CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(seed).save(path, quality=90)
    return path


def make_cub(root: Path) -> Path:
    """Four birds of two classes; images 1 and 3 are for training."""
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    images = [f"{names[number // 2]}/Bird_{number:04d}.jpg" for number in range(4)]
    for number, image in enumerate(images):
        write_image(root / "images" / image, number)
    lists = {
        "images.txt": images,
        "classes.txt": names,
        "image_class_labels.txt": (1, 1, 2, 2),
        "train_test_split.txt": (1, 0, 1, 0),
    }
    for name, values in lists.items():
        (root / name).write_text("".join(f"{number} {value}\n" for number, value in enumerate(values, start=1)))
    return root


def make_aircraft(root: Path) -> Path:
    """One photograph each in train, val and test; names hold slashes and spaces as the real ones do."""
    labels = {"train": ("0034309", "707-320", "Boeing 707"), "val": ("1025794", "F/A-18", "F/A-18")}
    labels["test"] = ("2062872", "A330-200", "A330")
    labels_of = {**{part: [row] for part, row in labels.items()}, "trainval": [labels["train"], labels["val"]]}
    for part, rows in labels_of.items():
        for number, (image, variant, family) in enumerate(rows):
            write_image(root / "data" / "images" / f"{image}.jpg", number)
            with (root / "data" / f"images_variant_{part}.txt").open("a") as file:
                file.write(f"{image} {variant}\n")
            with (root / "data" / f"images_family_{part}.txt").open("a") as file:
                file.write(f"{image} {family}\n")
    return root


def make_cars(root: Path, train: int = 2, test: int = 2, classes: tuple[str, ...] = CARS) -> Path:
    """Numbered cars, their classes in turn, with the devkit's MATLAB files."""
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([list(classes)], dtype=object)})
    for part, count in (("train", train), ("test", test)):
        rows = []
        for number in range(count):
            name = f"{number + 1:05d}.jpg"
            write_image(root / f"cars_{part}" / name, number)
            rows.append((1, 2, 30, 20, number % len(classes) + 1, name))
        fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
        annotations = np.array([rows], dtype=[(field, object) for field in fields])
        name = "cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        savemat(root / "devkit" / name, {"annotations": annotations})
    return root
