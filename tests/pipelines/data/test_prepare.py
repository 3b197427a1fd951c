"""Preparing: images are checked once, kept as Parquet in order, and read back as they were."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.decode import decode_image
from pipelines.data.options import PrepareConfig
from pipelines.data.prepare import Standardise, prepare
from pipelines.data.sources import fingerprint, is_prepared, read_images
from pipelines.data.verify import load_verified
from tests.pipelines.bad_images import ODD, ORDINARY, make_bad_folder, photograph, upper_red_lower_blue
from tests.pipelines.published import write_image

MakeFolder = Callable[..., Path]


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_odd_folder(ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, destination = tmp_path / "odd", tmp_path / "prepared"
    reasons = make_bad_folder(source)
    report = prepare(PrepareConfig(source=str(source), destination=str(destination)))
    assert report.images == len(ODD) + len(ORDINARY) and report.classes == {}
    assert report.fingerprint == fingerprint(str(source))
    written = json.loads((destination / "report.json").read_text())
    assert written["images"] == report.images
    assert [Path(item["path"]).name for item in written["set_aside"]] == sorted(reasons)
    assert all(reasons[Path(item["path"]).name] in item["reason"] for item in written["set_aside"])
    said = capsys.readouterr().out
    assert all(name in said for name in reasons)
    assert f"wrote {report.images} images, unlabelled, 0.0 MB, to {destination}; details in report.json" in said
    rows = {Path(row["path"]).name: row for row in read_images(str(destination)).take_all()}
    assert all(rows[name]["bytes"] == (source / name).read_bytes() for name in ORDINARY)
    assert {row["label"] for row in rows.values()} == {None}
    for row in rows.values():
        image = Image.open(io.BytesIO(row["bytes"]))
        assert (image.format, image.mode) == ("JPEG", "RGB")
    upright = decode_image(rows["rotated.jpg"]["bytes"])
    assert upright.size == upper_red_lower_blue().size


def test_round_trip(ray_session: None, tmp_path: Path, image_folder: MakeFolder) -> None:
    source, destination = str(image_folder(classes=3, per_class=4)), str(tmp_path / "prepared")
    report = prepare(PrepareConfig(source=source, destination=destination))
    assert report.classes == {"class-0": 4, "class-1": 4, "class-2": 4}
    assert not is_prepared(source) and is_prepared(destination)
    assert read_images(destination).take_all() == read_images(source).take_all()


def test_destination_may_be_a_uri(ray_session: None, tmp_path: Path, image_folder: MakeFolder) -> None:
    source, destination = str(image_folder(classes=1, per_class=2)), f"local://{tmp_path}/prepared"
    prepare(PrepareConfig(source=source, destination=destination))
    assert is_prepared(destination)
    assert len(read_images(destination).take_all()) == 2


def test_prepared_images_are_not_checked_again(ray_session: None, tmp_path: Path, image_folder: MakeFolder) -> None:
    destination = tmp_path / "prepared"
    prepare(PrepareConfig(source=str(image_folder(classes=1, per_class=2)), destination=str(destination)))
    # Spoilt of the same length, so that the file stays readable: only decoding would notice.
    shard = destination / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0"))
    images, set_aside = load_verified(str(destination))
    assert images.count() == 2 and set_aside == []
    (destination / "report.json").unlink()
    with pytest.raises(ValueError, match="none of its 2 images can be used"):
        load_verified(str(destination))


def test_shards_keep_the_order(ray_session: None, tmp_path: Path) -> None:
    for number in range(130):
        write_image(tmp_path / "images" / f"{number:03d}.jpg").write_bytes(
            encoded(photograph(number, (160, 160)), "JPEG")
        )
    config = PrepareConfig(source=str(tmp_path / "images"), destination=str(tmp_path / "prepared"), shard_mb=1)
    report = prepare(config)
    shards = sorted((tmp_path / "prepared").glob("*.parquet"))
    assert len(shards) >= 3
    assert all(shard.stat().st_size < 1.3e6 for shard in shards)
    assert report.megabytes == pytest.approx(sum(shard.stat().st_size for shard in shards) / 1e6, abs=0.3)
    paths = [Path(row["path"]).stem for row in read_images(config.destination).take_all()]
    assert paths == [f"{number:03d}" for number in range(130)]


def test_max_side_shrinks_the_short_side() -> None:
    shrink = Standardise(max_side=32)
    assert decode_image(shrink(encoded(photograph(0, (200, 100)), "PNG"))).size == (64, 32)
    assert decode_image(shrink(encoded(photograph(0, (50, 150)), "JPEG"))).size == (32, 96)
    small = encoded(photograph(0, (300, 32)), "JPEG")
    assert shrink(small) is small, "nothing is enlarged, and what is small enough is kept"


def test_image_too_long_for_a_jpeg_is_set_aside(ray_session: None, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "fine.jpg")
    Image.new("RGB", (66_000, 4)).save(tmp_path / "images" / "long.png")
    report = prepare(PrepareConfig(source=str(tmp_path / "images"), destination=str(tmp_path / "prepared")))
    assert report.images == 1
    assert report.set_aside[0].reason == "66000 x 4 is too long for a JPEG"


def test_folder_without_a_usable_image_leaves_nothing(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(b"spoilt")
    with pytest.raises(ValueError, match="none of its 1 images can be used"):
        prepare(PrepareConfig(source=str(tmp_path / "images"), destination=str(tmp_path / "prepared")))
    assert not (tmp_path / "prepared").exists()


def test_configuration_is_checked(tmp_path: Path) -> None:
    file = write_image(tmp_path / "images" / "1.jpg")
    source, new = str(tmp_path / "images"), str(tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    assert PrepareConfig(source=source, destination=str(tmp_path / "empty"))
    for taken in (tmp_path / "full", file):
        with pytest.raises(ValueError, match=f"^destination: {taken} is not empty; choose a new folder"):
            PrepareConfig(source=source, destination=str(taken))
    with pytest.raises(ValueError, match=r"^destination: .*/images/new lies in the source"):
        PrepareConfig(source=source, destination=f"{source}/new")
    with pytest.raises(ValueError, match="there is no such file"):
        PrepareConfig(source=f"{new}/none", destination=new)
    with pytest.raises(ValueError, match=r"^max_side must be at least 16, got 8"):
        PrepareConfig(source=source, destination=new, max_side=8)
    with pytest.raises(ValueError, match=r"^shard_mb must be at least 1, got 0"):
        PrepareConfig(source=source, destination=new, shard_mb=0)
