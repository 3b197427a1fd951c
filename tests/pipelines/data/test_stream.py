"""The stream of views: the same samples for the same seed, from any step, for any number of workers."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from PIL import Image

from lodisc.config import ViewConfig
from lodisc.views import CropAndFlip, TwoViews
from pipelines.data import stream as stream_module
from pipelines.data.decode import load_image
from pipelines.data.samples import ImageStore, SampleOrder, seed_of
from pipelines.data.scored import eval_images, scored_views
from pipelines.data.stream import NICENESS, Draw, sample_stream

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
def draw(images: ray.data.Dataset) -> Draw:
    return Draw(ImageStore.from_dataset(images), SampleOrder(3, 37, BATCH), TwoViews(ViewConfig(), SIZE))


# A step's samples, and what the stream holds of each by column.
Step = dict[int, dict[str, np.ndarray]]


def steps_seen(draw: Draw, start: int, total: int, workers: int) -> list[Step]:
    """Read the stream as `workers` workers would; return the rows of each step by their sample."""
    stream = sample_stream(draw, start, total, [workers])
    stream.context.execution_options.preserve_order = True
    shards = stream.streaming_split(workers, equal=True)
    read: Any = ray.remote(num_cpus=0)(lambda shard: list(shard.iter_batches(batch_size=BATCH // workers)))
    per_worker = ray.get([read.remote(shard) for shard in shards])
    assert {len(batches) for batches in per_worker} == {total - start}
    return [
        {
            int(sample): {name: column[row] for name, column in batch.items()}
            for batch in step
            for row, sample in enumerate(batch["sample"])
        }
        for step in zip(*per_worker, strict=True)
    ]


def assert_same(left: list[Step], right: list[Step]) -> None:
    assert [sorted(step) for step in left] == [sorted(step) for step in right]
    for a, b in zip(left, right, strict=True):
        for sample, row in a.items():
            assert row.keys() == b[sample].keys()
            assert all(np.array_equal(value, b[sample][name]) for name, value in row.items())


@pytest.fixture(scope="module")
def seen(draw: Draw) -> list[Step]:
    """Seven steps, as one worker reads them."""
    return steps_seen(draw, 0, 7, 1)


def test_store_reads_any_row(images: ray.data.Dataset) -> None:
    store = ImageStore.from_dataset(images)
    assert len(store) == 37
    wanted = np.array([36, 0, 10, 9, 10])
    assert list(store.read(wanted)) == [encoded(i) for i in wanted]


def test_views_are_drawn_after_whoever_trains(draw: Draw) -> None:
    """Ray gives all processes a niceness: that of a process that draws is higher, which takes no right."""

    def nice() -> tuple[int, int]:
        before = psutil.Process().nice()
        draw(np.arange(2))
        return before, psutil.Process().nice()

    priority: Any = ray.remote(nice).options(runtime_env={"env_vars": {"OF_ITS_OWN": "1"}})
    before, drawing = ray.get(priority.remote())
    assert before <= drawing == NICENESS


def test_every_epoch_is_a_fresh_permutation() -> None:
    order = SampleOrder(0, 37, BATCH)
    assert order.steps_per_epoch == 4
    epochs = order.image_of(np.arange(96)).reshape(3, 32)
    assert all(len(set(epoch)) == 32 for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(order.image_of(np.array([70, 5])), epochs.flatten()[[70, 5]])
    assert not np.array_equal(SampleOrder(1, 37, BATCH).image_of(np.arange(32)), epochs[0])


def test_stream_equals_a_plain_loop(draw: Draw, seen: list[Step]) -> None:
    two_views = TwoViews(ViewConfig(), SIZE)
    for step, samples in enumerate(seen):
        assert sorted(samples) == list(range(step * BATCH, (step + 1) * BATCH))
        for sample, row in samples.items():
            number = int(draw.order.image_of(np.array([sample]))[0])
            image = Image.open(io.BytesIO(encoded(number)))
            expected = two_views(image.size, partial(load_image, image), seed_of(3, sample))
            assert np.array_equal(row["view1"], expected[0]) and np.array_equal(row["view2"], expected[1])


def test_who_may_not_change_priorities_draws_all_the_same(
    draw: Draw, seen: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor may this process: without the right to it, it could not take back that it has given way."""

    def refuse(process: psutil.Process, value: int | None = None) -> int:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "nice", refuse)
    threads = cv2.getNumThreads()
    drawn = draw(np.arange(2))["view1"]
    cv2.setNumThreads(threads)
    assert np.array_equal(drawn, [seen[0][sample]["view1"] for sample in (0, 1)])


def test_stream_resumes_mid_epoch_and_is_the_same_for_any_number_of_workers(draw: Draw, seen: list[Step]) -> None:
    assert_same(steps_seen(draw, 3, 7, 2), seen[3:])


def test_stream_is_the_same_however_it_is_cut_into_tasks(
    draw: Draw, seen: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "SAMPLES_PER_TASK", 24)  # three tasks, of one to three chunks a worker and step
    monkeypatch.setattr(stream_module, "MAX_CHUNK", 4)
    assert_same(steps_seen(draw, 0, 7, 1), seen)
    assert_same(steps_seen(draw, 0, 7, 2), seen)


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
    draw = Draw(ImageStore.from_dataset(images), order, view, {"target": TARGETS, "held_out": HELD_OUT})
    seen = steps_seen(draw, 0, 5, 1)
    assert_same(steps_seen(draw, 2, 5, 2), seen[2:])
    for samples in seen:
        for sample, row in samples.items():
            number = int(row["view"][0].mean().round())  # its red tells which image it is of
            assert number == order.image_of(np.array([sample]))[0]
            assert (row["target"], row["held_out"]) == (TARGETS[number], HELD_OUT[number])


def test_scored_views_are_the_chosen_images_with_their_class(images: ray.data.Dataset) -> None:
    chosen = np.array([3, 11, 36])
    rows = scored_views(ImageStore.from_dataset(images), TARGETS, chosen, SIZE).take_all()
    assert sorted((int(row["view"][0].mean().round()), row["target"]) for row in rows) == [(3, 3), (11, 1), (36, 1)]
