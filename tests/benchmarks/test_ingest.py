"""The parts that the ingest benchmark measures with."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray
import torch
from PIL import Image

from benchmarks.ingest import dataloader_batches
from benchmarks.photographs import make_photographs
from benchmarks.traffic import Traffic


def test_dataloader_gives_normalised_pairs(tmp_path: Path) -> None:
    images = make_photographs(tmp_path / "images", 4, 90, 60)
    with Image.open(images / "class1" / "1.jpg") as photograph:
        assert photograph.size == (90, 60)
    batches = list(dataloader_batches(images, batch=2, count=3, workers=0))
    assert len(batches) == 3
    for view1, view2 in batches:
        assert view1.shape == view2.shape == (2, 3, 224, 224) and view1.dtype == torch.float32
        assert view1.abs().max() < 3 and not torch.equal(view1, view2)


@pytest.mark.usefixtures("ray_session")
def test_traffic_counts_what_enters_the_object_store() -> None:
    with Traffic() as traffic:
        time.sleep(0.3)
        start = time.time()
        held = ray.put(bytes(20_000_000))
        time.sleep(0.5)
        end = time.time()
    created, _ = traffic.between(start - 0.2, end)
    assert 20_000_000 <= created < 21_000_000
    assert traffic.peak >= 20_000_000
    del held
