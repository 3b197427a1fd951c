"""The pages that a user opens with `lodisc ui`, seen through a real browser."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import numpy as np
import pytest

from pipelines.pictures import draw, pivot_sheet
from pipelines.run.config import TrackingConfig
from pipelines.tracking.options import UIConfig
from pipelines.tracking.runs import RunHandle, create_run, finish_run
from pipelines.tracking.tracker import Tracker
from pipelines.tracking.ui import ui
from tests.pipelines.mlflow_pages import Pages, missing_browser
from tests.pipelines.mlflow_server import Server

RUNS = ("fused pivots", "random pivots")


def tracked_run(storage: Path, name: str, start: float) -> RunHandle:
    handle = create_run(TrackingConfig(), str(storage), name, {"model": {"pivots": name.split()[0]}})
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    scores = random.normal(size=(4, 64))
    kept = np.sort(np.argsort(-scores, axis=1)[:, :19], axis=1)
    tracker = Tracker(handle)
    for step in range(1, 41):
        tracker.log_metrics({"loss": start * math.exp(-step / 15), "eval/retrieval/rank1": step / 2}, step)
    tracker.log_figure(draw(pivot_sheet(images, scores, kept, (8, 8))), "pivots/step-00000040.png")
    tracker.close()
    finish_run(handle, "FINISHED")
    return handle


@pytest.mark.slow
@pytest.mark.skipif(missing_browser() is not None, reason=missing_browser() or "")
def test_two_runs_are_compared_and_their_pivots_looked_at(tmp_path: Path) -> None:
    handles = [tracked_run(tmp_path, name, start) for name, start in zip(RUNS, (1.0, 1.4), strict=True)]
    with Server(tmp_path) as server, Pages(server.uri, "1") as pages:
        assert pages.listed_runs() == set(RUNS)
        assert pages.compare("loss") == set(RUNS)
        for handle in handles:
            width, height = pages.picture_size(handle.run_id, "pivots/step-00000040.png")
            assert width > 900 and height > 300


def test_a_storage_without_runs_and_a_busy_port_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no MLflow store in"):
        ui(UIConfig(storage=str(tmp_path)))
    with pytest.raises(ValueError, match="there is no MLflow store in s3://"):
        ui(UIConfig(storage="s3://bucket/runs"))
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(ValueError, match=r"port: 127\.0\.0\.1:\d+ cannot be used"):
            ui(UIConfig(storage=str(tmp_path), port=busy.getsockname()[1]))
    with pytest.raises(ValueError, match=r"port must be in \[1, 65535\]"):
        UIConfig(port=0)
