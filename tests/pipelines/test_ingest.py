"""The stream of views: the same samples for the same seed, from any step, for any number of workers."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from PIL import Image

from lodisc.config import ViewConfig
from lodisc.views import CropAndFlip, TwoViews
from pipelines import ingest
from pipelines.decode import load_image
from pipelines.ingest import (
    NICENESS,
    Draw,
    DrawLabelled,
    DrawViews,
    ImageStore,
    SampleOrder,
    eval_images,
    sample_stream,
    scored_views,
)
from pipelines.seeds import seed_of

SIZE = 16
BATCH = 8


def encoded(number: int) -> bytes:
    """A PNG whose mean red level is the image's number."""
    stream = io.BytesIO()
    Image.new("RGB", (24, 20), (number, 100, 50)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def images(ray_session: None) -> ray.data.Dataset:
    rows = {
        "bytes": [encoded(i) for i in range(37)],
        "path": [f"{i}.png" for i in range(37)],
        "label": [None] * 37,
        "coarse": [None] * 37,
    }
    tables = [pa.table(rows).slice(start, 10) for start in range(0, 37, 10)]
    return ray.data.from_arrow(tables).materialize()


@pytest.fixture(scope="module")
def draw(images: ray.data.Dataset) -> DrawViews:
    return DrawViews(ImageStore.from_dataset(images), SampleOrder(3, 37, BATCH), ViewConfig(), SIZE)


def steps_seen(draw: Draw, start: int, total: int, workers: int, column: str = "view1") -> list[dict[int, np.ndarray]]:
    """Read the stream as `workers` workers would; return {sample: its value in a column} of each step."""
    stream = sample_stream(draw, start, total, [workers])
    stream.context.execution_options.preserve_order = True
    shards = stream.streaming_split(workers, equal=True)
    read: Any = ray.remote(num_cpus=0)(lambda shard: list(shard.iter_batches(batch_size=BATCH // workers)))
    per_worker = ray.get([read.remote(shard) for shard in shards])
    assert {len(batches) for batches in per_worker} == {total - start}
    return [
        {int(s): v for batch in step for s, v in zip(batch["sample"], batch[column], strict=True)}
        for step in zip(*per_worker, strict=True)
    ]


def assert_same(left: list[dict[int, np.ndarray]], right: list[dict[int, np.ndarray]]) -> None:
    assert [sorted(step) for step in left] == [sorted(step) for step in right]
    for a, b in zip(left, right, strict=True):
        assert all(np.array_equal(a[sample], b[sample]) for sample in a)


def test_store_reads_any_row(images: ray.data.Dataset) -> None:
    store = ImageStore.from_dataset(images)
    assert len(store) == 37
    wanted = np.array([36, 0, 10, 9, 10])
    assert list(store.read(wanted)) == [encoded(i) for i in wanted]


def test_views_are_drawn_after_whoever_trains(draw: DrawViews) -> None:
    """Ray gives all processes a niceness: that of a process that draws is higher, which takes no right."""

    def nice() -> tuple[int, int]:
        before = psutil.Process().nice()
        draw(np.arange(2))
        return before, psutil.Process().nice()

    priority: Any = ray.remote(nice).options(runtime_env={"env_vars": {"OF_ITS_OWN": "1"}})
    before, drawing = ray.get(priority.remote())
    assert before <= drawing == NICENESS


def test_who_may_not_change_priorities_draws_all_the_same(draw: DrawViews, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw(np.arange(2))["view1"]

    def refuse(process: psutil.Process, value: int | None = None) -> int:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "nice", refuse)
    assert np.array_equal(draw(np.arange(2))["view1"], expected)


def test_every_epoch_is_a_fresh_permutation() -> None:
    order = SampleOrder(0, 37, BATCH)
    assert order.steps_per_epoch == 4
    epochs = order.image_of(np.arange(96)).reshape(3, 32)
    assert all(len(set(epoch)) == 32 for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(order.image_of(np.array([70, 5])), epochs.flatten()[[70, 5]])
    assert not np.array_equal(SampleOrder(1, 37, BATCH).image_of(np.arange(32)), epochs[0])


def test_stream_equals_a_plain_loop(draw: DrawViews) -> None:
    seen = steps_seen(draw, 0, 5, 1)
    two_views = TwoViews(ViewConfig(), SIZE)
    for step, samples in enumerate(seen):
        assert sorted(samples) == list(range(step * BATCH, (step + 1) * BATCH))
        for sample, view in samples.items():
            number = int(draw.order.image_of(np.array([sample]))[0])
            image = Image.open(io.BytesIO(encoded(number)))
            expected, _ = two_views(image.size, partial(load_image, image), seed_of(3, sample))
            assert np.array_equal(view, expected)


def test_stream_is_the_same_for_any_number_of_workers(draw: DrawViews) -> None:
    assert_same(steps_seen(draw, 0, 5, 1), steps_seen(draw, 0, 5, 2))


def test_stream_is_the_same_however_it_is_cut_into_tasks(draw: DrawViews, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = steps_seen(draw, 0, 7, 1)
    monkeypatch.setattr(ingest, "SAMPLES_PER_TASK", 24)  # three tasks, of one to three chunks a worker and step
    monkeypatch.setattr(ingest, "MAX_CHUNK", 4)
    assert_same(steps_seen(draw, 0, 7, 1), whole)
    assert_same(steps_seen(draw, 0, 7, 2), whole)


def test_stream_resumes_mid_epoch(draw: DrawViews) -> None:
    assert_same(steps_seen(draw, 0, 6, 1)[3:], steps_seen(draw, 3, 6, 2))


def test_eval_images_are_limited_by_a_seeded_draw(images: ray.data.Dataset) -> None:
    everything = eval_images(images, ViewConfig(), SIZE, 100, 0).take_all()
    assert [row["path"] for row in everything] == [f"{i}.png" for i in range(37)]
    assert everything[5]["image"].shape == (3, SIZE, SIZE)
    some = [row["path"] for row in eval_images(images, ViewConfig(), SIZE, 10, 0).take_all()]
    assert len(set(some)) == 10
    assert some == [row["path"] for row in eval_images(images, ViewConfig(), SIZE, 10, 0).take_all()]
    assert some != [row["path"] for row in eval_images(images, ViewConfig(), SIZE, 10, 1).take_all()]


TARGETS, HELD_OUT = np.arange(37) % 5, np.arange(37) % 4 == 0


def test_labelled_views_come_with_their_own_class_for_any_number_of_workers(images: ray.data.Dataset) -> None:
    order, view = SampleOrder(3, 37, BATCH), CropAndFlip((0.5, 1.0), SIZE)
    draw = DrawLabelled(ImageStore.from_dataset(images), order, TARGETS, HELD_OUT, view)
    views = steps_seen(draw, 0, 5, 1, "view")
    assert_same(steps_seen(draw, 2, 5, 2, "view"), views[2:])
    targets, held_out = (steps_seen(draw, 0, 5, 2, column) for column in ("target", "held_out"))
    for step, samples in enumerate(views):
        for sample, drawn in samples.items():
            number = int(drawn[0].mean().round())  # its red tells which image it is of
            assert number == order.image_of(np.array([sample]))[0]
            assert (targets[step][sample], held_out[step][sample]) == (TARGETS[number], HELD_OUT[number])


def test_scored_views_are_the_chosen_images_with_their_class(images: ray.data.Dataset) -> None:
    chosen = np.array([3, 11, 36])
    rows = scored_views(ImageStore.from_dataset(images), TARGETS, chosen, SIZE).take_all()
    assert sorted((int(row["view"][0].mean().round()), row["target"]) for row in rows) == [(3, 3), (11, 1), (36, 1)]
