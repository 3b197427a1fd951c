"""Embedding to Parquet: the numbers are those of `extract`, and what is there already is never computed again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from lodisc.normalise import normalise
from lodisc.precision import autocast, resolve_precision
from lodisc.views import eval_view
from pipelines.data.decode import decode_image
from pipelines.data.verify import SetAside, load_verified
from pipelines.evaluation.features import extract, matrix
from pipelines.run.checkpoint import load_encoder, weights_fingerprint
from pipelines.takeaway.embed import content_hash, embed
from pipelines.takeaway.embeddings import (
    ABOUT,
    PARTIAL,
    EmbeddingFolder,
    Origin,
    embedding_schema,
    refuse_not_finite,
    rows_per_group,
)
from pipelines.takeaway.options import EmbedConfig
from tests.environment import REPOSITORY
from tests.pipelines.checkpoints import write_checkpoint

# A process that dies as from `kill -9` while it writes its second file.
KILLED = """
import os, signal, sys
import pyarrow.parquet as pq
from cluster.cli import main

write, calls = pq.ParquetWriter.write_table, []
def write_once(writer, table, *arguments):
    write(writer, table, *arguments)
    calls.append(table)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
pq.ParquetWriter.write_table = write_once
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "step-00000007")


@pytest.fixture(scope="module")
def images(image_folder: Callable[..., Path]) -> Path:
    """20 images and a broken one among them."""
    folder = image_folder(classes=2, per_class=10)
    (folder / "class-0" / "0041.jpg").write_bytes(b"\xff\xd8\xff torn")
    return folder


@pytest.fixture(scope="module")
def config(checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbedConfig:
    """Three files: 8, 8 and 4 images."""
    out = tmp_path_factory.mktemp("out") / "embeddings"
    return EmbedConfig(checkpoint=str(checkpoint), images=str(images), out=str(out), batch_size=8, shard_images=8)


@pytest.fixture(scope="module")
def embedded(ray_session: None, config: EmbedConfig) -> pa.Table:
    embed(config)
    return pq.read_table(config.out)


def shards(out: str) -> list[Path]:
    return sorted(Path(out).glob("*.parquet"))


def times(out: str) -> list[int]:
    return [shard.stat().st_mtime_ns for shard in shards(out)]


@pytest.mark.slow
def test_rows_are_those_of_the_source_and_features_those_of_extract(
    embedded: pa.Table, config: EmbedConfig, images: Path
) -> None:
    encoder, _ = load_encoder(config.checkpoint)
    usable, set_aside = load_verified(config.images)
    expected = extract(encoder, usable, image_size=32, batch_size=4)

    assert embedded["path"].to_pylist() == expected.paths == sorted(expected.paths)
    assert embedded["label"].to_pylist() == expected.labels == ["class-0"] * 10 + ["class-1"] * 10
    assert embedded["coarse"].to_pylist() == [None] * 20
    assert embedded.schema.field("embedding").type == pa.list_(pa.float32(), 192)
    assert (matrix(embedded["embedding"]) == expected.features.numpy()).all()
    assert [shard.name for shard in shards(config.out)] == [f"shard-0000{number}.parquet" for number in range(3)]
    assert [pq.read_metadata(shard).num_rows for shard in shards(config.out)] == [8, 8, 4]
    about = EmbeddingFolder.at(config.out).about()
    assert about is not None and about.count == 20 and about.set_aside == set_aside
    assert set_aside == [SetAside(str(images / "class-0" / "0041.jpg"), set_aside[0].reason)]
    assert (about.origin.step, about.origin.weights) == (7, weights_fingerprint(encoder))
    assert json.loads(embedded.schema.metadata[b"lodisc"])["weights"] == about.origin.weights


@pytest.mark.slow
def test_a_finished_folder_is_left_alone(
    embedded: pa.Table, config: EmbedConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(config.out)
    embed(config)
    assert capsys.readouterr().out == f"{config.out} is finished: all 20 images are embedded; nothing to do\n"
    assert times(config.out) == before


@pytest.mark.slow
def test_a_killed_process_is_continued(
    embedded: pa.Table, config: EmbedConfig, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "killed")
    options = ["--images", config.images, "--out", out, "--batch_size", "8", "--shard_images", "8"]
    address = ["--address", ray.get_runtime_context().gcs_address]
    command = [sys.executable, "-c", KILLED, "embed", config.checkpoint, *options, *address]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    log = tmp_path / "log"
    with log.open("w") as stream:  # Not a pipe: a helper process of the killed one might hold it open.
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    assert done.returncode == -signal.SIGKILL, log.read_text()
    assert [shard.name for shard in shards(out)] == ["shard-00000.parquet"]
    assert any(path.name.startswith(PARTIAL) for path in Path(out).iterdir())
    shutil.copy(shards(config.out)[2], out)  # The rows of the missing file lie between those of files that are there.
    before = times(out)
    capsys.readouterr()

    embed(replace(config, out=out))

    said = capsys.readouterr().out
    assert f"set aside: {images}/class-0/0041.jpg: " in said and f"{images}: 20 images, 1 set aside" in said
    assert f"{out}: 2 of 3 files are there; continuing with the others" in said
    assert "embedded 20/20 images\n" in said and f"192 numbers each (float32), to {out}" in said
    now = times(out)
    assert (now[0], now[2]) == (before[0], before[1]) and len(now) == 3
    assert pq.read_table(out).equals(embedded)
    assert {path.name for path in Path(out).iterdir()} == {ABOUT, *(shard.name for shard in shards(out))}


@pytest.mark.slow
def test_patch_tokens_are_timms_and_float16_is_rounded_once(
    embedded: pa.Table, config: EmbedConfig, tmp_path: Path
) -> None:
    out = f"local://{tmp_path}/patches"
    embed(replace(config, out=out, dtype="float16", patch_tokens=True))
    table = pq.read_table(tmp_path / "patches")
    assert table["path"].equals(embedded["path"])
    features = matrix(table["embedding"])
    assert features.dtype == np.float16
    assert (features == matrix(embedded["embedding"]).astype(np.float16)).all()

    about = json.loads(table.schema.metadata[b"lodisc"])["patch_tokens"]
    assert about == {"shape": [16, 192], "grid": [4, 4]}
    encoder, _ = load_encoder(config.checkpoint)
    views = [
        torch.from_numpy(eval_view(decode_image(Path(path).read_bytes()), 32)) for path in table["path"].to_pylist()
    ]
    cpu = torch.device("cpu")
    with torch.inference_mode(), autocast(resolve_precision("auto", cpu), cpu):
        batches = [normalise(torch.stack(views[start : start + 4])) for start in range(0, 20, 4)]
        tokens = torch.cat([encoder.vit.forward_features(batch) for batch in batches])
    expected = tokens[:, 1:].float().numpy().astype(np.float16)
    patches = matrix(table["patch_tokens"]).reshape(-1, *about["shape"])
    np.testing.assert_allclose(patches, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_other_embeddings_are_refused_by_what_differs(
    embedded: pa.Table, config: EmbedConfig, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    before = times(config.out)
    other = write_checkpoint(tmp_path / "step-00000007", seed=6)
    weights = [weights_fingerprint(load_encoder(path)[0]) for path in (config.checkpoint, str(other))]
    was = f"checkpoint was {config.checkpoint} ({weights[0]}), is {other} ({weights[1]})"
    for changes, said in (
        ({"checkpoint": str(other)}, was),
        ({"images": str(image_folder(classes=1))}, f"images was {config.images} ("),
        ({"dtype": "float16", "patch_tokens": True}, "dtype was 'float32', is 'float16'; patch_tokens was False, is"),
        ({"shard_images": 16}, "shard_images was 8, is 16"),
    ):
        with pytest.raises(ValueError, match=f"out: {config.out} holds other embeddings") as refusal:
            embed(replace(config, **changes))
        assert said in str(refusal.value)
    assert times(config.out) == before


@pytest.mark.slow
def test_a_file_that_changed_behind_its_list_is_noticed(
    embedded: pa.Table, config: EmbedConfig, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = image_folder(classes=1, per_class=3)
    (folder / "all.txt").write_text("".join(f"class-0/00{number}.jpg\n" for number in range(3)))
    contents = [content_hash(load_verified(str(folder / "all.txt"))[0]) for _ in range(2)]
    shutil.copy(folder / "class-0" / "000.jpg", folder / "class-0" / "001.jpg")
    contents.append(content_hash(load_verified(str(folder / "all.txt"))[0]))
    assert contents[0] == contents[1] != contents[2]

    about = EmbeddingFolder.at(config.out).about()
    assert about is not None
    EmbeddingFolder.at(str(tmp_path / "out")).write_about(replace(about, content="another"))
    said = f"the usable images were 20 with contents another, are 20 with contents {about.content}"
    with pytest.raises(ValueError, match=said):
        embed(replace(config, out=str(tmp_path / "out")))
    assert shards(str(tmp_path / "out")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "nowhere"}, "nowhere: neither a checkpoint folder"),
        ({"images": "nowhere"}, "nowhere: there is no such file or folder"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"shard_images": 100}, r"shard_images \(100\) must be a multiple of batch_size \(64\)"),
        ({"dtype": "int8"}, "dtype must be float32 or float16, got 'int8'"),
        ({"out": "images/out"}, "out: images/out lies in the source"),
        ({"out": "a-file"}, "out: a-file is a file; choose a folder"),
        ({"out": "full"}, "out: full holds something else than embeddings"),
        ({"out": "nosuch://bucket/out"}, "nosuch://bucket/out: neither pyarrow nor fsspec can open it"),
    ],
)
def test_config_refuses(
    changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("a-file").touch()
    Path("full").mkdir()
    Path("full", "shard-00000.parquet").touch()
    given: dict[str, Any] = {"checkpoint": str(checkpoint), "images": "images", "out": "new"}
    EmbedConfig(**given)
    with pytest.raises(ValueError, match=message):
        EmbedConfig(**(given | changes))


def test_what_is_not_about_embeddings_is_refused(tmp_path: Path) -> None:
    (tmp_path / ABOUT).write_text('{"origin": {}}')
    with pytest.raises(ValueError, match=f"{ABOUT} is damaged or of another release"):
        EmbeddingFolder.at(str(tmp_path)).about()


def test_numbers_that_are_not_finite_are_refused() -> None:
    def rows(*numbers: float, dtype: str) -> pa.Table:
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.array(numbers, dtype=dtype)), 2)
        return pa.table({"path": ["a.jpg", "b.jpg"], "embedding": values})

    refuse_not_finite(rows(0, 1, 2, 3, dtype="float16"))
    with pytest.raises(ValueError, match=r"b\.jpg: its embedding is not finite in float16: keep float32"):
        refuse_not_finite(rows(0, 1, 2, np.inf, dtype="float16"))
    with pytest.raises(ValueError, match=r"a\.jpg: its embedding is not finite in float32: the encoder has diverged"):
        refuse_not_finite(rows(0, np.nan, 2, 3, dtype="float32"))


def test_a_row_group_is_small_enough_to_hold() -> None:
    def origin(patch_tokens: bool) -> Origin:
        return Origin(
            checkpoint="step-00000007",
            step=7,
            weights="any",
            encoder={},
            images="images",
            fingerprint="any",
            dtype="float32",
            patch_tokens=patch_tokens,
            shard_images=4096,
        )

    assert rows_per_group(4096, embedding_schema(origin(patch_tokens=False), 768, (14, 14))) == 4096
    patches = embedding_schema(origin(patch_tokens=True), 768, (14, 14))
    assert rows_per_group(4096, patches) == 32, "196 tokens and an embedding of 768 float32 are 605 kB"
