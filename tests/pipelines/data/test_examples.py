"""Which photographs are chosen to be shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.examples import choose, in_shards, spread


def test_every_class_comes_once_before_one_comes_twice() -> None:
    labels = ["rare", *["common"] * 50, "odd", "odd"]
    order = spread(labels, seed=3)
    assert sorted(order) == list(range(53))
    assert {labels[place] for place in order[:3]} == {"rare", "common", "odd"}
    assert {labels[place] for place in order[3:5]} == {"common", "odd"}
    assert order == spread(labels, seed=3) != spread(labels, seed=4)


def test_images_that_cannot_be_used_are_named_and_replaced(
    image_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder(classes=2, per_class=2)
    for name in ("000.jpg", "001.jpg"):
        (folder / "class-1" / name).write_bytes(b"torn")
    photos = choose(str(folder), 3, seed=0)
    assert [photo.label for photo in photos] == ["class-0", "class-0"]
    assert all(Path(photo.path).read_bytes() == photo.data for photo in photos)
    printed = capsys.readouterr().out
    assert "class-1/000.jpg: not an image" in printed and "class-1/001.jpg: not an image" in printed
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of its images can be used"):
        choose(str(folder), 3, seed=0)


def test_a_single_file_is_taken_as_it_is(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    path = image_folder(classes=1, per_class=1) / "class-0" / "000.jpg"
    (photo,) = choose(str(path), 6, seed=0)
    assert (photo.stem, photo.label, photo.data) == ("000", None, path.read_bytes())
    with pytest.raises(ValueError, match=r"gone\.jpg: there is no such file"):
        in_shards(str(tmp_path / "gone.jpg"))


def test_shards_are_read_by_ray(ray_session: None, image_folder: Callable[..., Path], tmp_path: Path) -> None:
    paths = sorted(image_folder(classes=3, per_class=4).rglob("*.jpg"))
    labels = [path.parent.name for path in paths]
    table = {"bytes": [path.read_bytes() for path in paths], "label": labels, "path": [str(path) for path in paths]}
    pq.write_table(pa.table(table), tmp_path / "images.parquet")
    assert in_shards(str(tmp_path))
    photos = choose(str(tmp_path), 3, seed=5)
    assert {photo.label for photo in photos} == {"class-0", "class-1", "class-2"}
    assert all(Path(photo.path).read_bytes() == photo.data for photo in photos)
