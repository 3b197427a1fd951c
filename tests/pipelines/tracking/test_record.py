"""A run read back from a real MLflow store."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.entities import Metric

from pipelines.run.config import DataConfig
from pipelines.tracking.record import read_record
from tests.pipelines.tiny_run import STEPS, STEPS_PER_EPOCH, TinyRun, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_run(tmp_path_factory.mktemp("run"), DataConfig(images="photos"), name="mine")


def test_curves_are_over_epochs_with_one_point_a_step(run: TinyRun) -> None:
    run.client.log_batch(run.run_id, metrics=[Metric("eval/knn/fine", 99.0, 9000, STEPS)])
    record = read_record(run.uri, run.run_id)
    assert (record.name, record.status) == ("mine", "FINISHED") and record.ended is not None
    assert set(record.curves) == {"loss", "contrastive/top1", "schedule/learning_rate", "eval/knn/fine"}
    assert record.curves["loss"].epochs == [step / STEPS_PER_EPOCH for step in range(1, STEPS + 1)]
    assert record.curves["loss"].values[-1] == 2
    assert (record.curves["eval/knn/fine"].epochs, record.curves["eval/knn/fine"].values) == ([0, 1, 2], [10, 30, 99])
    assert record.last("eval/") == {"knn/fine": 99}


def test_stores_that_are_not_there_are_said_and_not_made(run: TinyRun, tmp_path: Path) -> None:
    gone = tmp_path / "gone.db"
    with pytest.raises(ValueError, match="there is no MLflow store at sqlite"):
        read_record(f"sqlite:///{gone}", "some-run")
    assert not gone.exists()
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9 does not answer"):
        read_record("http://user:secret@127.0.0.1:9", "some-run")
    with pytest.raises(ValueError, match="another-run"):
        read_record(run.uri, "another-run")
