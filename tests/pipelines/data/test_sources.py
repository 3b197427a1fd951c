"""Every kind of source read through a real Ray: rows, labels, order, and what is said when there is nothing to read."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from pipelines.data.sources import ROW, find_source, fingerprint, is_prepared, read_images
from tests.pipelines.bad_images import ORDINARY, make_bad_folder, photograph
from tests.pipelines.published import make_aircraft, make_cars, make_cub, write_image

MakeFolder = Callable[..., Path]


def rows_of(*sources: str | Path) -> list[dict[str, Any]]:
    """Return the rows of one source after the other, read at once: what costs time is Ray Data's beginning."""
    first, *others = (read_images(str(source)) for source in sources)
    rows = (first.union(*others) if others else first).take_all()
    assert all(list(row) == ROW.names for row in rows)
    return rows


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    photograph(seed).save(stream, "JPEG")
    return stream.getvalue()


def test_folder(ray_session: None, image_folder: MakeFolder) -> None:
    root = image_folder(classes=2, per_class=70, size=16)  # more than one block of files
    rows = rows_of(root)
    files = sorted(root.rglob("*.jpg"))
    assert [row["path"] for row in rows] == [str(file) for file in files]
    assert [row["label"] for row in rows] == [file.parent.name for file in files]
    assert all(row["bytes"] == file.read_bytes() for row, file in zip(rows, files, strict=True))
    assert {row["coarse"] for row in rows} == {None}


def test_blocks_have_one_schema(ray_session: None, image_folder: MakeFolder, tmp_path: Path) -> None:
    """Labels that are null throughout one block must stay strings, or later steps cannot join the blocks."""
    folder = image_folder(classes=1, per_class=70, size=16)
    for kind in ("tar", "parquet"):
        (tmp_path / kind).mkdir()
    for shard, label in enumerate((b"7", None)):
        files = {"1.jpg": jpeg(1)} | ({"1.cls": label} if label else {})
        write_tar(tmp_path / "tar" / f"{shard}.tar", files)
        pq.write_table(pa.table({"jpg": [jpeg(1)], "cls": [label and 7]}), tmp_path / "parquet" / f"{shard}.parquet")
    first, *others = (read_images(str(source)) for source in (folder, tmp_path / "tar", tmp_path / "parquet"))
    dataset = first.union(*others).materialize()
    refs = [ref for bundle in dataset.iter_internal_ref_bundles() for ref in bundle.block_refs]
    assert len(refs) >= 2 + 2 + 1  # Ray may read small Parquet files in one task
    assert {block.schema.remove_metadata() for block in ray.get(refs)} == {ROW}


def test_order_is_kept_when_a_later_block_is_ready_first(ray_session: None, tmp_path: Path) -> None:
    for number in range(64):
        write_image(tmp_path / f"{number:03d}.png").write_bytes(bytes(400_000))  # the first block takes longest
    for number in range(64, 200):
        (tmp_path / f"{number:03d}.png").write_bytes(b"small")
    for _ in range(2):
        assert [Path(row["path"]).stem for row in rows_of(tmp_path)] == [f"{number:03d}" for number in range(200)]


def test_file_that_cannot_be_read_has_no_bytes(ray_session: None, tmp_path: Path) -> None:
    write_image(tmp_path / "here.jpg")
    (tmp_path / "list.txt").write_text("here.jpg, a\ngone.jpg, b\n")
    here, gone = rows_of(tmp_path / "list.txt")
    assert here["bytes"] == (tmp_path / "here.jpg").read_bytes()
    assert gone["bytes"] is None and gone["label"] == "b"


def test_odd_folder_lists_every_image(ray_session: None, tmp_path: Path) -> None:
    bad = make_bad_folder(tmp_path / "a folder, 100% odd #1")
    names = {Path(row["path"]).name for row in rows_of(tmp_path / "a folder, 100% odd #1")}
    assert names >= {*bad, *ORDINARY}


@pytest.mark.slow
def test_grocery(ray_session: None, grocery: Path) -> None:
    dataset = read_images(str(grocery / "train.txt"))
    labels = [row["label"] for row in dataset.select_columns(["label"]).iter_rows()]
    assert len(labels) == 2640
    assert labels[0] == "Golden-Delicious" and len(set(labels)) == 81


def test_published_layouts(ray_session: None, tmp_path: Path) -> None:
    layouts: dict[str, tuple[Callable[[Path], Path], str, list[str]]] = {
        "CUB-200-2011": (make_cub, "train", ["001.Black_footed_Albatross", "002.Laysan_Albatross"]),
        "FGVC-Aircraft": (make_aircraft, "trainval", ["707-320", "F/A-18"]),
        "Stanford Cars": (make_cars, "test", ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]),
    }
    sources, expected = [], []
    for kind, (make, split, labels) in layouts.items():
        root = make(tmp_path / kind)
        assert find_source(f"{root}@{split}").kind == kind
        assert fingerprint(f"{root}@{split}") != fingerprint(f"{root}@all")
        with pytest.raises(ValueError, match=rf"{kind} has splits; name one, as in {root}@train \(train, "):
            find_source(str(root))
        with pytest.raises(ValueError, match=f"{kind} has splits; name one"):
            find_source(f"{root}@training")
        sources.append(f"{root}@{split}")
        expected += labels
    rows = rows_of(*sources)
    assert [row["label"] for row in rows] == expected
    assert all(row["bytes"] == Path(row["path"]).read_bytes() for row in rows)


def test_split_of_a_plain_folder_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "1.jpg")
    with pytest.raises(ValueError, match=r"only published layouts have splits \(CUB-200-2011, .*drop @train"):
        find_source(f"{tmp_path}@train")


def test_folder_with_an_at_sign_in_its_name(tmp_path: Path) -> None:
    write_image(tmp_path / "me@home" / "1.jpg")
    assert find_source(str(tmp_path / "me@home")).split is None
    make_cub(tmp_path / "me@home" / "CUB")
    assert find_source(str(tmp_path / "me@home" / "CUB") + "@test").split == "test"


def test_own_parquet(ray_session: None, tmp_path: Path) -> None:
    for shard in range(3):
        numbers = range(shard * 5, shard * 5 + 5)
        columns = [[jpeg(n) for n in numbers], [f"{n}.jpg" for n in numbers], ["a"] * 5, [None] * 5]
        pq.write_table(pa.table(columns, schema=ROW), tmp_path / f"shard-{shard}.parquet")
    rows = rows_of(tmp_path, tmp_path / "shard-1.parquet")
    read = [*range(15), *range(5, 10)]
    assert [row["path"] for row in rows] == [f"{n}.jpg" for n in read]
    assert [row["bytes"] for row in rows] == [jpeg(n) for n in read]
    assert {row["label"] for row in rows} == {"a"} and {row["coarse"] for row in rows} == {None}
    assert not is_prepared(str(tmp_path))


def test_parquet_with_only_images(ray_session: None, tmp_path: Path) -> None:
    data = [jpeg(0), None, jpeg(1)]
    columns = {"image": pa.array(data, pa.large_binary()), "label": pa.nulls(3)}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    rows = rows_of(tmp_path)
    assert [row["bytes"] for row in rows] == data
    assert [row["label"] for row in rows] == [None] * 3
    assert rows[1]["path"] == "image of 0 bytes"


def test_row_group_larger_than_a_block_keeps_its_order(ray_session: None, tmp_path: Path) -> None:
    count, size = 60, 2**20
    data = [number.to_bytes(2, "big") + bytes(size) for number in range(count)]
    table = pa.table([data, [str(n) for n in range(count)], [None] * count, [None] * count], schema=ROW)
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=count, use_dictionary=False)
    dataset = read_images(str(tmp_path)).materialize()
    assert [row["path"] for row in dataset.select_columns(["path"]).take_all()] == [str(n) for n in range(count)]
    assert dataset.num_blocks() > 1


def hugging_face_table(labels: list[int | None], path: str | None = "{}.jpg") -> pa.Table:
    """Return a table as `datasets` pushes it to the Hub."""
    images = [{"bytes": jpeg(n), "path": path and path.format(n)} for n in range(len(labels))]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["beaver", "otter"], "_type": "ClassLabel"},
        "coarse_label": {"names": ["swimmer"], "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("coarse_label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.table([images, labels, [0] * len(labels)], schema=schema)


def test_hugging_face_parquet_and_integer_classes_without_names(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "named" / "data").mkdir(parents=True)
    pq.write_table(hugging_face_table([1, 0, -1, None]), tmp_path / "named" / "data" / "train-00000-of-00001.parquet")
    pq.write_table(hugging_face_table([1, 0], path=None).replace_schema_metadata(None), tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "named", tmp_path / "x.parquet")
    assert [row["label"] for row in rows] == ["otter", "beaver", None, None, "1", "0"]
    assert [row["coarse"] for row in rows] == ["swimmer"] * 4 + ["0"] * 2
    assert [row["path"] for row in rows[:4]] == [f"{n}.jpg" for n in range(4)]
    assert rows[4]["path"] == f"image of {len(jpeg(0))} bytes"
    assert [row["bytes"] for row in rows] == [jpeg(n) for n in (*range(4), 0, 1)]


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_webdataset_with_classes(ray_session: None, tmp_path: Path) -> None:
    for shard in range(2):
        files: dict[str, bytes] = {}
        for n in range(3):
            files |= {f"{n:04d}.jpg": jpeg(n), f"{n:04d}.cls": str(shard).encode()}
        write_tar(tmp_path / f"shard-{shard}.tar", files)
    rows = rows_of(tmp_path)
    expected = [(f"shard-{shard}.tar/{n:04d}", str(shard), jpeg(n)) for shard in range(2) for n in range(3)]
    assert [(row["path"], row["label"], row["bytes"]) for row in rows] == expected
    assert {row["coarse"] for row in rows} == {None}


def test_webdataset_with_json(ray_session: None, tmp_path: Path) -> None:
    about = [{"label": "wren", "coarse": "birds"}, {"label": 3}, {}]
    files: dict[str, bytes] = {}
    for n, value in enumerate(about):
        files |= {f"x/{n}.JPEG": jpeg(n), f"x/{n}.json": json.dumps(value).encode()}
    # Samples need not have the same files; these have no image or no label.
    files |= {"x/7.json": b'{"label": "gone"}', "x/8.png": b"png", "x/9.jpg": b"jpg", "x/9.txt": b"dog\n"}
    rows = rows_of(write_tar(tmp_path / "x.tar", files))
    assert [row["label"] for row in rows] == ["wren", "3", None, "gone", None, "dog"]
    assert [row["coarse"] for row in rows] == ["birds", None, None, None, None, None]
    assert [row["bytes"] for row in rows] == [jpeg(0), jpeg(1), jpeg(2), None, b"png", b"jpg"]


def test_uris(ray_session: None, tmp_path: Path) -> None:
    for name in ("wren/2.jpg", "wren/1.jpg", "gull/1.jpg"):
        write_image(tmp_path / "images" / name)
    pq.write_table(hugging_face_table([1, 0]), tmp_path / "x.parquet")
    write_tar(tmp_path / "x.tar", {"1.jpg": jpeg(1), "1.cls": b"0"})
    protocols = ("file", "local")  # pyarrow knows the first, only fsspec the second
    rows = rows_of(*(f"{p}://{tmp_path}/{name}" for p in protocols for name in ("images", "x.parquet", "x.tar")))
    assert [row["label"] for row in rows] == ["gull", "wren", "wren", "otter", "beaver", "0"] * 2
    assert rows[5]["bytes"] == rows[11]["bytes"] == jpeg(1)


@pytest.mark.parametrize("location", ["/no/such/folder", "file:///no/such/folder", "memory://no/such", "/no/such@all"])
def test_missing_path(location: str) -> None:
    with pytest.raises(ValueError, match=f"^{location}: there is no such file or folder"):
        find_source(location)


def test_unknown_protocol() -> None:
    with pytest.raises(ValueError, match=r"^nonsense://x: neither pyarrow nor fsspec can open it"):
        find_source("nonsense://x")


def test_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1\.jpg: expected a folder, a \.parquet or \.tar file"):
        find_source(str(write_image(tmp_path / "1.jpg")))


def test_empty_folder(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no images found \(files ending in \.jpg"):
        read_images(str(tmp_path))


def test_parquet_without_images(ray_session: None, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.jpg"], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no column of encoded images .* among image, label"):
        read_images(str(tmp_path))


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.jpg")
    (tmp_path / "list.txt").write_text("images/1.jpg, a\n")
    sources = [str(tmp_path / "images"), str(tmp_path / "list.txt")]
    before = [fingerprint(source) for source in sources]
    assert before == [fingerprint(source) for source in sources]
    write_image(tmp_path / "images" / "2.jpg")
    (tmp_path / "list.txt").write_text("images/1.jpg, a\nimages/2.jpg, a\n")
    assert all(fingerprint(source) != old for source, old in zip(sources, before, strict=True))
    (tmp_path / "elsewhere").symlink_to(tmp_path / "images")
    assert fingerprint(str(tmp_path / "elsewhere")) == fingerprint(sources[0]), "it depends on where the files lie"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_in_parquet_are_refused(ray_session: None, tmp_path: Path) -> None:
    made = tmp_path / "made"
    named = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    schema = pa.schema([pa.field("jpg", pa.binary()), pa.field("cls", pa.large_binary(), metadata=named)])
    pq.write_table(pa.table([[jpeg(1)], [pickle.dumps(Touch(made))]], schema=schema), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: column cls must hold plain values"):
        read_images(str(tmp_path / "x.parquet"))
    assert not made.exists()


def test_pickles_in_tar_shards_are_left_alone(ray_session: None, tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_tar(tmp_path / "x.tar", {"1.jpg": jpeg(1), "1.cls": b"7", "1.pkl": pickle.dumps(Touch(made))})
    assert [row["label"] for row in rows_of(tmp_path / "x.tar")] == ["7"]
    assert not made.exists()
