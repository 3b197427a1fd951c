"""A run in a bucket, whose machine keeps nothing that is not lost with it."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

from pipelines.run_folder import RunFolder
from tests.cluster.nodes import wait_for
from tests.environment import environment_outside
from tests.pipelines.kill import kill_worker_after
from tests.pipelines.mlflow_server import Server, free_port

pytestmark = pytest.mark.slow
STEPS = 45
SECONDS = 300.0  # the longest that anything here may take
RUN = "s3://lab/runs/first"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket `lab` of an S3 server on this machine, which the environment names."""
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="lab")
    yield
    server.stop()


def recipe(folder: Path, images: Path, uri: str) -> str:
    tree = {
        "data": {"images": str(images)},
        "encoder": {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "depth": 2},
        "model": {"hidden_dim": 64, "output_dim": 32},
        "optim": {"epochs": STEPS // 3, "batch_size": 8, "warmup_epochs": 1, "precision": "fp32"},
        "checkpoint": {"every_steps": 1},
        "evaluation": {"every_epochs": 1000},
        "tracking": {"uri": uri},
        "storage": "s3://lab/runs",
        "name": "first",
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


def saved() -> int:
    """Return how many steps of the run are in a checkpoint."""
    return RunFolder(RUN).finished_steps()


def test_a_machine_that_is_lost_while_mlflow_is_down_takes_no_point_with_it(
    bucket: None, image_folder: Any, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").touch()
    server, log = Server(tmp_path), tmp_path / "run.log"
    with server:
        config = recipe(tmp_path, image_folder(classes=2, per_class=13), server.uri)
        with log.open("w") as output:
            run = subprocess.Popen(
                [sys.executable, "-m", "cluster.cli", "pretrain", "--config", config],
                cwd=tmp_path,
                env=environment_outside(),
                stdout=output,
                stderr=output,
            )
        wait_for(lambda: saved() >= 4, SECONDS, why=log.read_text, pause=0.3)
    down = saved()
    wait_for(lambda: saved() >= down + 4, SECONDS, why=log.read_text, pause=0.3)
    handle = json.loads(RunFolder(RUN).read("tracking.json"))
    kill_worker_after(RUN, down + 4)
    shutil.rmtree(Path(handle["buffer_path"]).parent)
    with Server(tmp_path, server.port):
        assert run.wait(SECONDS) == 0, log.read_text()
        client = MlflowClient(server.uri)
        points = client.get_metric_history(handle["run_id"], "loss")
        tracked = client.get_run(handle["run_id"])
    assert [point.step for point in points] == list(range(1, STEPS + 1))
    assert (tracked.info.status, tracked.data.tags["restarts"]) == ("FINISHED", "1")
    assert saved() == STEPS
