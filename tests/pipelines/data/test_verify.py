"""Verification: what can be used is kept in order, what cannot is named with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import ray.data

from pipelines.data.sources import ROW
from pipelines.data.verify import SetAside, load_verified, usable_images
from tests.pipelines.bad_images import ODD, ORDINARY, make_bad_folder
from tests.pipelines.published import write_image


def test_bad_files_are_set_aside_with_their_reason(ray_session: None, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    reasons = make_bad_folder(folder)
    images, set_aside = load_verified(str(folder))
    rows = images.take_all()
    assert [Path(row["path"]).name for row in rows] == sorted((*ODD, *ORDINARY))
    assert all(row["bytes"] == Path(row["path"]).read_bytes() for row in rows)
    assert images.columns() == ROW.names
    assert [Path(item.path).name for item in set_aside] == sorted(reasons)
    assert all(reasons[Path(item.path).name] in item.reason for item in set_aside)


def test_order_is_kept_over_many_blocks(ray_session: None, image_folder: Callable[..., Path]) -> None:
    folder = image_folder(classes=3, per_class=70, size=16)
    spoilt = [folder / "class-0" / "003.jpg", folder / "class-2" / "069.jpg"]
    for path in spoilt:
        path.write_bytes(b"spoilt")
    images, set_aside = load_verified(str(folder))
    expected = [str(path) for path in sorted(folder.rglob("*.jpg")) if path not in spoilt]
    assert [row["path"] for row in images.take_all()] == expected
    assert set_aside == [SetAside(str(path), "not an image") for path in spoilt]


def test_file_that_cannot_be_read_is_set_aside(ray_session: None, tmp_path: Path) -> None:
    write_image(tmp_path / "here.jpg")
    (tmp_path / "list.txt").write_text("here.jpg, a\ngone.jpg, b\n")
    images, set_aside = load_verified(str(tmp_path / "list.txt"))
    assert images.count() == 1
    assert set_aside == [SetAside(str(tmp_path / "gone.jpg"), "cannot be read")]


def test_folder_without_a_usable_image_is_refused(ray_session: None, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"spoilt")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: none of its 5 images can be used \(.*0\.jpg: not an image; "):
        load_verified(str(tmp_path))


def test_what_was_set_aside_is_said(ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "fine.jpg")
    (tmp_path / "empty.jpg").touch()
    assert isinstance(usable_images(str(tmp_path)), ray.data.Dataset)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"set aside: {tmp_path}/empty.jpg: empty file", f"{tmp_path}: 1 images, 1 set aside"]
