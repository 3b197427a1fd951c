"""Runs in real MLflow stores: what they hold, and what becomes of it when the store or the process dies."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from pipelines.run.config import TrackingConfig
from pipelines.tracking.journal import Journal
from pipelines.tracking.model import log_encoder
from pipelines.tracking.runs import RunHandle, create_run, finish_run, resume_run
from pipelines.tracking.tracker import Tracker
from tests.environment import environment_outside
from tests.pipelines.disk import fill
from tests.pipelines.mlflow_server import Server, free_port

PARAMS = {"model": {"temperature": 0.2, "crop": [0.08, 1.0]}, "name": None, "long": "x" * 7000}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("runs", "tracker"):
        monkeypatch.setattr(f"pipelines.tracking.{module}.QUICK_RETRIES", (0.05, 0.05, 0.05))
    monkeypatch.setattr("pipelines.tracking.tracker.SLOW_RETRY", 0.2)


def steps(handle: RunHandle, metric: str = "loss") -> list[int]:
    return [point.step for point in MlflowClient(handle.uri).get_metric_history(handle.run_id, metric)]


def files(handle: RunHandle, folder: str | None = None) -> set[str]:
    return {item.path for item in MlflowClient(handle.uri).list_artifacts(handle.run_id, folder)}


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def test_a_run_says_what_it_is(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init")
    git("commit", "--allow-empty", "--message", "first")
    parent = create_run(TrackingConfig(), str(storage), "parent", {})
    (tmp_path / "edited.py").touch()
    handle = create_run(TrackingConfig(), str(storage), "first", PARAMS, {"dataset.fingerprint": "1f"}, parent.run_id)
    client = MlflowClient(handle.uri)
    run = client.get_run(handle.run_id)
    assert handle.uri == f"sqlite:///{storage}/mlflow.db"
    assert run.data.params == {
        "model.temperature": "0.2",
        "model.crop": "[0.08, 1.0]",
        "name": "None",
        "long": "x" * 6000,
    }
    assert run.info.run_name == "first" and run.info.status == "RUNNING"
    expected = {
        "dataset.fingerprint": "1f",
        "mlflow.parentRunId": parent.run_id,
        "mlflow.source.git.commit": git("rev-parse", "HEAD"),
        "git.commit": f"{git('rev-parse', 'HEAD')}+dirty",
        "version.torch": version("torch"),
        "version.ray": version("ray"),
        "python": platform.python_version(),
    }
    assert expected.items() <= run.data.tags.items()
    assert client.get_run(parent.run_id).data.tags["git.commit"] == git("rev-parse", "HEAD")
    assert (storage / "mlartifacts" / handle.run_id / "artifacts" / "config.yaml").is_file()
    finish_run(handle, "FINISHED")
    assert client.get_run(handle.run_id).info.status == "FINISHED"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "edited.py"], "a store in the working directory"


def test_metrics_files_and_the_machine_are_tracked(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setattr("pipelines.tracking.tracker.FIRST_SAMPLE", 0.0)
    handle = create_run(TrackingConfig(), str(storage), "tracked", {})
    tracker = Tracker(handle)
    for step in range(5):
        tracker.log_metrics({"loss": 1 / (step + 1), "top1": float("nan")}, step)
    tracker.log_figure(Image.new("RGB", (8, 8)), "pivots/step-00000004.png")
    report = tmp_path / "report.txt"
    report.write_text("text")
    tracker.log_artifact(report)
    report.unlink()
    wait_for(
        lambda: "system/cpu_utilization_percentage" in MlflowClient(handle.uri).get_run(handle.run_id).data.metrics
    )
    tracker.close()
    history = MlflowClient(handle.uri).get_metric_history(handle.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / (step + 1)) for step in range(5)]
    assert {"config.yaml", "report.txt", "pivots"} == files(handle)
    assert files(handle, "pivots") == {"pivots/step-00000004.png"}
    assert Path(handle.buffer_path).stat().st_size == 0
    assert not [path for path in Path(handle.buffer_path).parent.rglob("*") if path.suffix in (".png", ".txt")]


def test_a_resumed_run_repeats_no_point(storage: Path) -> None:
    """A killed worker has logged steps that the checkpoint does not have: they are computed again, not logged again."""
    handle = create_run(TrackingConfig(), str(storage), "resumed", {})
    for first in (0, 3):
        tracker = Tracker(resume_run(handle))
        for step in range(first, first + 6):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.close()
    assert steps(handle) == list(range(9))


def test_what_a_killed_process_had_not_sent_is_sent_on_resume(storage: Path) -> None:
    handle = create_run(TrackingConfig(), str(storage), "killed", {})
    buffer = Path(handle.buffer_path)
    journal = Journal(buffer, partial(MlflowClient, handle.uri), handle.run_id)
    for step in range(2500):
        journal.append({"metrics": {"loss": 0.5}, "step": step, "time": 1})
    journal.close()
    with buffer.open("ab") as file:
        file.write(b'{"metrics": {"loss": 0.')  # the machine lost power here
    resume_run(handle)
    assert steps(handle) == list(range(2500))
    assert buffer.stat().st_size == 0


@pytest.mark.privileged
def test_what_a_full_disk_refuses_is_sent_once_there_is_room(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal is on the disk that is full, the store is not; no entry is written in part."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    handle = create_run(TrackingConfig(uri=uri), str(disk), "full", {})
    tracker = Tracker(handle)
    tracker.log_metrics({"loss": 0.0}, 0)
    wait_for(lambda: steps(handle) == [0])
    fill(disk)
    for step in range(1, 400):
        tracker.log_metrics({"loss": float(step), "name of a metric that fills what is left of the disk": 0.0}, step)
    assert "training goes on, what it tells waits in memory" in capsys.readouterr().err
    (disk / "ballast").unlink()
    tracker.log_metrics({"loss": 400.0}, 400)
    tracker.close()
    assert steps(handle) == list(range(401))


def test_a_run_at_work_is_left_alone_by_the_next_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = create_run(TrackingConfig(), str(tmp_path), "working", {})
    journal = Journal(Path(handle.buffer_path), partial(MlflowClient, handle.uri), handle.run_id)
    journal.deliver()
    journal.append({"metrics": {"loss": 0.5}, "step": 1, "time": 1})
    (tmp_path / "working" / "tracking.json").write_text(json.dumps(asdict(handle)))
    create_run(TrackingConfig(), str(tmp_path), "next", {})
    assert steps(handle) == [] and "tracking:" not in capsys.readouterr().err
    journal.close()
    create_run(TrackingConfig(), str(tmp_path), "after it", {})
    assert steps(handle) == [1]


@pytest.mark.parametrize("left", ["", '{"uri": "sqli', "[]", '{"another": "release"}'])
def test_a_run_whose_record_is_damaged_blocks_no_other(
    left: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tracking.json").write_text(left)
    assert create_run(TrackingConfig(), str(tmp_path), "next", {}).run_id
    assert f"{tmp_path}/damaged/tracking.json cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_loses_nothing(
    storage: Path, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither of a run that goes on, nor of one that ends meanwhile, which the next one completes."""
    create_run(TrackingConfig(), str(storage), "makes-the-database", {})
    slowest = 0.0

    def log(tracker: Tracker, first: int, stop: int) -> None:
        nonlocal slowest
        for step in range(first, stop):
            start = time.perf_counter()
            tracker.log_metrics({"loss": float(step), "top1": 1.0}, step)
            slowest = max(slowest, time.perf_counter() - start)

    with Server(storage) as server:
        config = TrackingConfig(uri=server.uri, experiment="over http")
        handle, cut_off = (create_run(config, str(storage), name, PARAMS) for name in ("survivor", "cut-off"))
        (storage / "cut-off").mkdir()
        (storage / "cut-off" / "tracking.json").write_text(json.dumps(asdict(cut_off)))
        tracker = Tracker(handle)
        log(tracker, 0, 10)
        wait_for(lambda: steps(handle) == list(range(10)))
    log(tracker, 10, 30)
    tracker.log_figure(Image.new("RGB", (8, 8), (255, 0, 0)), "pivots/step-00000030.png")
    said = ""
    while "does not take the run's data" not in said:
        said += capsys.readouterr().err
        time.sleep(0.02)

    ending = Tracker(cut_off)
    ending.log_metrics({"loss": 1.0}, 0)
    ending.close()
    finish_run(cut_off, "FINISHED")
    said_at_end = capsys.readouterr().err
    assert cut_off.buffer_path in said_at_end and "another one starts in the same storage" in said_at_end
    said += said_at_end

    log(tracker, 30, 40)
    assert Path(handle.buffer_path).stat().st_size > 0
    with Server(storage, server.port):
        log(tracker, 40, 50)
        tracker.close()
        finish_run(handle, "FINISHED")
        history = MlflowClient(handle.uri).get_metric_history(handle.run_id, "loss")
        assert [(point.step, point.value) for point in history] == [(step, float(step)) for step in range(50)]
        assert files(handle, "pivots") == {"pivots/step-00000030.png"}
        assert "mlflow-artifacts" in str(MlflowClient(handle.uri).get_run(handle.run_id).info.artifact_uri)
        assert steps(cut_off) == []
        create_run(config, str(storage), "next", {})
        assert steps(cut_off) == [0]
        assert MlflowClient(cut_off.uri).get_run(cut_off.run_id).info.status == "FINISHED"
    said += capsys.readouterr().err
    of_the_survivor = [line for line in said.splitlines() if cut_off.buffer_path not in line]
    assert sum("does not take the run's data" in line for line in of_the_survivor) == 1
    assert sum("answers again" in line for line in of_the_survivor) == 1
    assert slowest < 0.25, "a step waited for the server"


@pytest.mark.slow
def test_the_logged_encoder_gives_the_same_features_for_any_batch(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = create_run(TrackingConfig(), str(storage), "model", {"seed": 0})
    config = EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2)
    encoder = Encoder(config).train()
    log_encoder(handle, encoder, np.zeros((2, 3, 32, 32), dtype=np.float32), step=7)
    assert encoder.training
    images = torch.randn(5, 3, 32, 32)
    expected = encoder.eval()(images)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", handle.uri)
    model = mlflow.pytorch.load_model(f"runs:/{handle.run_id}/encoder")
    served = mlflow.pyfunc.load_model(f"runs:/{handle.run_id}/encoder")
    registered = mlflow.register_model(f"runs:/{handle.run_id}/encoder", "encoder-of-the-test")
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(torch.from_numpy(served.predict(images[:1].numpy())), expected[:1], rtol=1e-4, atol=1e-5)
    assert served.metadata.signature.inputs.inputs[0].shape == (-1, 3, 32, 32)
    assert int(registered.version) == 1
    assert not (Path(handle.buffer_path).parent / "files" / "encoder").exists()


def test_an_encoder_that_cannot_be_exported_is_said(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Branching(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :2] if images.sum() > 0 else images.flatten(1)[:, 1:3]

    handle = create_run(TrackingConfig(), str(storage), "unexportable", {})
    log_encoder(handle, Branching(), np.zeros((2, 3, 8, 8), dtype=np.float32))
    assert "cannot be exported" in capsys.readouterr().err


def test_a_store_that_cannot_be_used_is_refused_before_work_starts(tmp_path: Path) -> None:
    nowhere = f"http://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match=r"tracking\.uri: the MLflow store http://127") as refused:
        create_run(TrackingConfig(uri=nowhere), str(tmp_path), "run", {})
    assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="cannot hold a database"):
        create_run(TrackingConfig(), "s3://bucket/runs", "run", {})
    with pytest.raises(ValueError, match=r"tracking\.experiment"):
        TrackingConfig(experiment=" ")


@pytest.mark.slow
def test_drivers_that_start_together_make_one_store(tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines.tracking.runs import *; create_run(TrackingConfig(), sys.argv[1], sys.argv[2], {})"
    )
    env = environment_outside()
    drivers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], env=env, cwd=tmp_path) for name in "ab"
    ]
    assert [driver.wait(120) for driver in drivers] == [0, 0]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("lodisc")
    assert experiment is not None
    assert {run.info.run_name for run in client.search_runs([experiment.experiment_id])} == {"a", "b"}
