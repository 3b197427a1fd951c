"""Telling a run on this machine to end: by SIGTERM, as a scheduler does, and by Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.run_folder import RunFolder
from tests.cluster.nodes import wait_for
from tests.environment import environment_outside

pytestmark = pytest.mark.slow
OPTIONS = {
    "encoder.arch": "vit_tiny_patch16_224",
    "encoder.image_size": 32,
    "encoder.patch_size": 8,
    "encoder.depth": 2,
    "model.hidden_dim": 64,
    "model.output_dim": 32,
    "optim.batch_size": 8,
    "optim.epochs": 3000,
    "optim.precision": "fp32",
    "evaluation.every_epochs": 3000,
    "name": "mine",
}


def start(folder: Path, images: Path, *more: str) -> subprocess.Popen[bytes]:
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    with (folder / "run.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "pretrain", f"--data.images={images}", *options, *more],
            cwd=folder,
            env=environment_outside(),
            stdout=log,
            stderr=log,
        )


def test_a_run_that_is_told_to_end_ends_well(tmp_path: Path, image_folder: Any) -> None:
    images, log = image_folder(classes=2, per_class=13), tmp_path / "run.log"

    def saved() -> int:
        return RunFolder(str(tmp_path / "runs" / "mine")).finished_steps()

    run = start(tmp_path, images)
    wait_for(lambda: saved() >= 6, why=log.read_text)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143, log.read_text()
    assert "the run was told to end and did, at step" in log.read_text()
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("lodisc")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    steps = [point.step for point in client.get_metric_history(tracked.info.run_id, "loss")]
    assert tracked.info.status == "KILLED" and steps == list(range(1, saved() + 1)), "no step is lost"

    before = saved()
    run = start(tmp_path, images, "--resume")
    wait_for(lambda: saved() >= before + 6, why=log.read_text)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130, log.read_text()
    assert client.get_run(tracked.info.run_id).info.status == "KILLED"
