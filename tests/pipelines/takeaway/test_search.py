"""Search: what a plain computation of all similarities finds, in bounded memory, with its table and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster.cli import main
from lodisc.encoder import Encoder
from pipelines.data.sources import ROW
from pipelines.evaluation.features import Embed
from pipelines.pictures import FRAME, GREY, MARGIN, PAPER, SAME, SIDE
from pipelines.run.checkpoint import load_encoder, weights_fingerprint
from pipelines.takeaway.embeddings import About, EmbeddingFolder, Origin, embedding_schema
from pipelines.takeaway.options import SearchConfig
from pipelines.takeaway.search import Found, scan, search
from tests.pipelines.checkpoints import write_checkpoint


def batches(vectors: np.ndarray, paths: list[str], size: int) -> list[pa.RecordBatch]:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"path": paths, "label": pa.array([f"class of {path}" for path in paths]), "embedding": lists})
    return [*table.to_batches(max_chunksize=size), *table.slice(0, 0).to_batches()]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [7, 200, 1000])
def test_it_finds_what_brute_force_finds(dtype: str, size: int) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((500, 24)).astype(dtype) * random.uniform(0.1, 10, (500, 1)).astype(dtype)
    paths = [f"/photos/{number}.jpg" for number in range(500)]
    queries = random.standard_normal((3, 24)).astype(np.float32)
    found = [Found(f"/elsewhere/{number}.jpg", query) for number, query in enumerate(queries)]

    scan(batches(vectors, paths, size), found, k=9)

    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (queries.astype(float), vectors.astype(float))]
    similarity = unit[0] @ unit[1].T
    for query, expected in zip(found, similarity, strict=True):
        best = np.argsort(-expected)[:9].tolist()
        assert [neighbour.row for neighbour in query.neighbours] == best
        assert [neighbour.path for neighbour in query.neighbours] == [paths[row] for row in best]
        assert [neighbour.label for neighbour in query.neighbours] == [f"class of {paths[row]}" for row in best]
        np.testing.assert_allclose([neighbour.similarity for neighbour in query.neighbours], expected[best], atol=1e-6)
        assert not query.among


def test_a_query_among_the_images_is_left_out_and_its_copies_are_not() -> None:
    vectors = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    vectors[[3, 7, 9]] = vectors[0]
    paths = [f"/photos/{number}.jpg" for number in range(12)]
    paths[7] = "/photos/lists/../0.jpg"  # as a list file in /photos/lists has it
    found = [Found("/photos/0.jpg", vectors[0]), Found("/photos/1.jpg", vectors[1])]
    scan(batches(vectors, paths, size=5), found, k=10)
    assert (found[0].among, found[0].label) == (True, "class of /photos/0.jpg")
    assert [neighbour.row for neighbour in found[0].neighbours[:2]] == [3, 9], "equals in the order of the source"
    assert {neighbour.row for neighbour in found[0].neighbours} == set(range(12)) - {0, 7}
    assert {neighbour.row for neighbour in found[1].neighbours} > {0, 7}, "another query finds them"


@pytest.fixture(scope="module")
def photographs(image_folder: Callable[..., Path]) -> list[Path]:
    return sorted(image_folder(classes=2, per_class=6).rglob("*.jpg"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "step-00000007")


@pytest.fixture(scope="module")
def embeddings(checkpoint: Path, photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `embed` writes, in two files, without a Ray."""
    encoder: Encoder = load_encoder(str(checkpoint))[0]
    rows = [{"bytes": path.read_bytes(), "path": str(path), "label": path.parent.name} for path in photographs]
    table = Embed(encoder, 32, threads=1)(pa.Table.from_pylist(rows, schema=ROW))
    origin = Origin(
        checkpoint=str(checkpoint),
        step=7,
        weights=weights_fingerprint(encoder),
        encoder={"image_size": 32},
        images=str(photographs[0].parent.parent),
        fingerprint="any",
        dtype="float32",
        patch_tokens=False,
        shard_images=8,
    )
    folder = EmbeddingFolder.at(str(tmp_path_factory.mktemp("out") / "embeddings"))
    about = About(origin, len(rows), "any", [])
    folder.write_about(about)
    schema = embedding_schema(origin, encoder.feature_dim, encoder.grid)
    for number in range(about.shards):
        folder.write_shard(number, schema, [table.slice(8 * number, 8)], about.rows_of(number))
    return Path(folder.path)


def test_from_the_command_line_to_table_and_sheet(
    embeddings: Path,
    photographs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stranger = tmp_path / "stranger.jpg"
    Image.new("RGB", (40, 60), "teal").save(stranger)
    gone = photographs[7].read_bytes()
    photographs[7].unlink()
    monkeypatch.chdir(photographs[0].parent)
    sheet = tmp_path / "new" / "sheet.png"
    try:
        query = photographs[0].name
        assert (
            main(["search", str(embeddings), "--image", query, str(stranger), "-k", "11", "--sheet", str(sheet)]) == 0
        )
    finally:
        photographs[7].write_bytes(gone)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{photographs[0]}, itself among the images as class-0: left out"
    first, second = (lines[start : start + 11] for start in (2, 15))
    assert lines[13] == str(stranger) and lines[-1] == f"pictures in {sheet}"
    ranked = [line.split() for line in first]
    assert [int(rank) for rank, *_ in ranked] == list(range(1, 12))
    assert sorted(path for *_, path in ranked) == [str(path) for path in photographs[1:]]
    assert all(label == Path(path).parent.name for _, _, label, path in ranked)
    assert len({line.split()[3] for line in second}) == 11

    picture = np.asarray(Image.open(sheet))
    left = MARGIN + SIDE
    top = next(y for y in range(picture.shape[0]) if (picture[y, left - SIDE : left] != PAPER).any(axis=-1).all())
    for _, _, label, path in ranked:
        left = next(x for x in range(left, picture.shape[1]) if (picture[top : top + SIDE, x] != PAPER).all())
        tile = picture[top : top + SIDE, left : left + SIDE]
        inner = tile[FRAME:-FRAME, FRAME:-FRAME]
        assert (inner == GREY).all() == (path == str(photographs[7])), "a picture that is gone is grey"
        assert (tuple(tile[0, 0]) == SAME) == (label == "class-0")
        left += SIDE


def test_the_encoder_may_have_moved_but_not_changed(
    embeddings: Path, checkpoint: Path, photographs: list[Path], tmp_path: Path
) -> None:
    config = SearchConfig(
        embeddings=str(embeddings), image=[str(photographs[0])], k=3, sheet=str(tmp_path / "sheet.png")
    )
    at_its_place = search(config)
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    try:
        with pytest.raises(ValueError, match=r"checkpoint: .*; say with --checkpoint where the encoder lies now"):
            search(config)
        assert search(replace(config, checkpoint=str(moved)))[0].neighbours == at_its_place[0].neighbours
    finally:
        moved.rename(checkpoint)
    other = write_checkpoint(tmp_path / "step-00000007", seed=6)
    with pytest.raises(ValueError, match=rf"checkpoint: {other} \(step 7, weights .*\) is not the encoder of"):
        search(replace(config, checkpoint=str(other)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"image": []}, "image: name at least one image file"),
        ({"image": ["gone.jpg"]}, "image: gone.jpg cannot be read"),
        ({"image": ["torn.jpg"]}, "image: torn.jpg: not an image"),
        ({"sheet": "."}, "sheet must be a PNG file"),
        ({"embeddings": "empty"}, "embeddings: empty holds none; write them with `lodisc embed`"),
        ({"embeddings": "half"}, "embeddings: half has 0 of its 2 files; finish it with the same `lodisc embed`"),
    ],
)
def test_bad_input_is_refused(
    changes: dict[str, Any], message: str, embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("torn.jpg").write_bytes(b"torn")
    about = EmbeddingFolder.at(str(embeddings)).about()
    assert about is not None
    EmbeddingFolder.at("half").write_about(about)
    with pytest.raises(ValueError, match=message):
        search(SearchConfig(**({"embeddings": str(embeddings), "image": ["torn.jpg"]} | changes)))
