"""Each layout's files and labels, read from small copies on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from pipelines.data import layouts
from pipelines.data.layouts import Folder, official_layout
from tests.pipelines.published import CARS, make_aircraft, make_cars, make_cub, write_image


def folder_of(path: Path) -> Folder:
    return Folder(fs.LocalFileSystem(), str(path))


def listed(root: Path, table: Any) -> list[tuple[str, str | None, str | None]]:
    """Return a listing's rows with paths relative to `root`; every path must exist."""
    rows = [(row["path"], row["label"], row["coarse"]) for row in table.to_pylist()]
    assert all(Path(path).is_file() for path, _, _ in rows)
    return [(str(Path(path).relative_to(root)), label, coarse) for path, label, coarse in rows]


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.JPG", "c.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    expected = [("a.JPG", None, None), ("b.jpg", None, None), ("c.png", None, None)]
    assert listed(tmp_path, layouts.image_folder(folder_of(tmp_path))) == expected


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("wren/2.jpg", "wren/1.jpg", "gull/1.jpg"):
        write_image(tmp_path / name)
    expected = [("gull/1.jpg", "gull", None), ("wren/1.jpg", "wren", None), ("wren/2.jpg", "wren", None)]
    assert listed(tmp_path, layouts.image_folder(folder_of(tmp_path))) == expected


def test_outer_folders_are_coarse_classes(tmp_path: Path) -> None:
    for name in ("gulls/herring/1.jpg", "terns/arctic/1.jpg"):
        write_image(tmp_path / name)
    rows = listed(tmp_path, layouts.image_folder(folder_of(tmp_path)))
    assert [row[1:] for row in rows] == [("gulls/herring", "gulls"), ("terns/arctic", "terns")]


def test_list_without_class_names(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "2.jpg", "3.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "train.txt").write_text("x/1.jpg, wren, birds\n\n2.jpg,4\n3.jpg\n")
    rows = listed(tmp_path, layouts.list_file(folder_of(tmp_path), "train.txt"))
    assert rows == [("x/1.jpg", "wren", "birds"), ("2.jpg", "4", None), ("3.jpg", None, None)]


def test_list_with_class_names(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        write_image(tmp_path / name)
    classes = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)\nGala,0,Apple,7\n"
    (tmp_path / "classes.csv").write_text(classes + '"Kiwi, green",1,Kiwi,8\n')
    (tmp_path / "train.txt").write_text("1.jpg, 1, 8\n2.jpg, 0, 7\n3.jpg, , \n")
    rows = listed(tmp_path, layouts.list_file(folder_of(tmp_path), "train.txt"))
    assert rows == [("1.jpg", "Kiwi, green", "Kiwi"), ("2.jpg", "Gala", "Apple"), ("3.jpg", None, None)]


@pytest.mark.parametrize("line", [", 1, 2", "a.jpg, 1, 2, 3"])
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.txt").write_text(f"fine.jpg, 1, 2\n{line}\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 2: expected `path, label"):
        layouts.list_file(folder_of(tmp_path), "train.txt")


def test_grocery_list(grocery: Path) -> None:
    rows = listed(grocery, layouts.list_file(folder_of(grocery), "train.txt"))
    assert len(rows) == 2640
    assert rows[0] == ("train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg", "Golden-Delicious", "Apple")
    assert len({label for _, label, _ in rows}) == 81
    assert len({coarse for _, _, coarse in rows}) <= 46


def test_cub(tmp_path: Path) -> None:
    folder = folder_of(make_cub(tmp_path / "CUB"))
    assert official_layout(folder) == "CUB-200-2011"
    rows = {split: listed(tmp_path, layouts.cub_200_2011(folder, split)) for split in ("train", "test", "all")}
    assert [label for _, label, _ in rows["all"]] == ["001.Black_footed_Albatross"] * 2 + ["002.Laysan_Albatross"] * 2
    assert rows["train"] == rows["all"][::2]
    assert rows["test"] == rows["all"][1::2]


def test_aircraft(tmp_path: Path) -> None:
    folder = folder_of(make_aircraft(tmp_path))
    assert official_layout(folder) == "FGVC-Aircraft"
    splits = layouts.OFFICIAL["FGVC-Aircraft"].splits
    rows = {split: listed(tmp_path, layouts.fgvc_aircraft(folder, split)) for split in splits}
    assert rows["train"] == [("data/images/0034309.jpg", "707-320", "Boeing 707")]
    assert rows["trainval"] == rows["train"] + rows["val"]
    assert rows["all"] == rows["trainval"] + rows["test"]
    assert rows["val"][0][1:] == ("F/A-18", "F/A-18")


def test_cars(tmp_path: Path) -> None:
    folder = folder_of(make_cars(tmp_path, train=3, test=2))
    assert official_layout(folder) == "Stanford Cars"
    rows = {split: listed(tmp_path, layouts.stanford_cars(folder, split)) for split in ("train", "test", "all")}
    assert rows["train"] == [(f"cars_train/0000{n}.jpg", CARS[(n - 1) % 2], None) for n in (1, 2, 3)]
    assert rows["all"] == rows["train"] + rows["test"]


def test_cars_with_one_annotation_and_one_class(tmp_path: Path) -> None:
    folder = folder_of(make_cars(tmp_path, train=1, test=1, classes=CARS[:1]))
    assert listed(tmp_path, layouts.stanford_cars(folder, "train")) == [("cars_train/00001.jpg", CARS[0], None)]


def test_cars_labels_may_lie_beside_the_devkit(tmp_path: Path) -> None:
    make_cars(tmp_path)
    name = "cars_test_annos_withlabels.mat"
    (tmp_path / "devkit" / name).rename(tmp_path / name)
    assert len(layouts.stanford_cars(folder_of(tmp_path), "test")) == 2
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{tmp_path}: {name} is missing from devkit/"):
        layouts.stanford_cars(folder_of(tmp_path), "test")


def test_other_folders_are_no_published_layout(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.jpg")
    assert official_layout(folder_of(tmp_path)) is None
