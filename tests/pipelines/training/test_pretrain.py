"""Pretraining end to end on a real Ray: the same run in one piece, in pieces, on two workers, in a bucket."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from ray.util.state import list_actors

from cluster.cli import main
from lodisc.config import EncoderConfig, ModelConfig
from lodisc.encoder import Encoder
from pipelines.data.run_images import RunImages, load_images
from pipelines.evaluation.evaluators import Seen, score
from pipelines.evaluation.features import embed_decoded
from pipelines.run.causes import NonFiniteLossError, WorkersFailedError
from pipelines.run.checkpoint import find_checkpoint, last_checkpoint, load_encoder, read_state
from pipelines.run.config import (
    CheckpointingConfig,
    ComputeConfig,
    DataConfig,
    InTrainingConfig,
    OptimConfig,
    PretrainConfig,
    TrackingConfig,
    to_dict,
)
from pipelines.run.folder import FINISHED, LEAVE, RunFolder, directory_name, step_of
from pipelines.tracking.new_store import make_database
from pipelines.tracking.runs import RunHandle
from pipelines.training.preemption import SECONDS_BETWEEN_LOOKS
from pipelines.training.pretrain import PretrainResult, pretrain
from pipelines.training.pretraining import PROBES
from pipelines.training.timing import PHASES
from tests.cluster.nodes import wait_for
from tests.environment import environment_outside
from tests.pipelines.bad_images import ODD, ORDINARY, make_bad_folder
from tests.pipelines.bucket import served_bucket
from tests.pipelines.disk import fill_after
from tests.pipelines.kill import kill_worker_after, standing_still
from tests.pipelines.mlflow_server import Server

pytestmark = pytest.mark.slow
STEPS = 12
CPUS = 2  # of the tests' own Ray


@dataclass(frozen=True)
class Data:
    """What the runs train on.

    Attributes:
        folder: of the images.
        unusable: what must be said of a file that cannot be used, by its name.
    """

    folder: Path
    unusable: dict[str, str]


@pytest.fixture(scope="module")
def data(image_folder: Any) -> Data:
    """27 images of three classes, one of which are odd files, and some that cannot be used."""
    folder = image_folder(classes=2, per_class=8)
    return Data(folder, make_bad_folder(folder / "odd"))


@pytest.fixture(scope="module")
def config(data: Data, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Twelve steps: 27 images in batches of 8, four epochs."""
    return PretrainConfig(
        data=DataConfig(images=str(data.folder)),
        encoder=EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2),
        model=ModelConfig(hidden_dim=64, output_dim=32, local_view="tokens", head_dropout=0.0),
        optim=OptimConfig(epochs=4, batch_size=8, base_lr=0.01, warmup_epochs=1, clip_norm=1.0, precision="fp32"),
        checkpoint=CheckpointingConfig(every_steps=1, keep=STEPS),
        evaluation=InTrainingConfig(every_epochs=4),
        name="whole",
        storage=str(tmp_path_factory.mktemp("runs")),
    )


@dataclass(frozen=True)
class Loaded:
    """The images of the runs in Ray, and what was printed while they were read."""

    images: RunImages
    printed: str


@pytest.fixture(scope="module")
def loaded(ray_session: None, config: PretrainConfig) -> Loaded:
    with redirect_stdout(io.StringIO()) as printed:
        return Loaded(load_images(config), printed.getvalue())


@pytest.fixture(scope="module")
def whole(loaded: Loaded, config: PretrainConfig) -> PretrainResult:
    return pretrain(config, images=loaded.images)


def losses(result: PretrainResult) -> dict[int, float]:
    history = MlflowClient(result.tracking_uri).get_metric_history(result.run_id, "loss")
    assert len({point.step for point in history}) == len(history), "a step was logged twice"
    return {point.step: point.value for point in history}


def weights_at(result: PretrainResult, step: int) -> dict[str, torch.Tensor]:
    return read_state(find_checkpoint(f"{result.run_dir}/{directory_name(step)}"))["model"]


def assert_same_end(result: PretrainResult, whole: PretrainResult) -> None:
    """Every step had the same loss, and the parameters are bit-identical."""
    assert losses(result) == losses(whole)
    one, other = weights_at(whole, STEPS), weights_at(result, STEPS)
    assert all(torch.equal(one[name], other[name]) for name in one)


def start(config: PretrainConfig, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own, which has a Ray of its own and writes to `run.log`."""

    def prepare() -> None:
        # As many threads train as the node has CPUs, and bits depend on their number.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # A shell has its background jobs ignore it.

    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    with (folder / "run.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "pretrain", "--config", str(recipe), *options],
            cwd=folder,
            env=environment_outside(),
            stdout=log,
            stderr=log,
            preexec_fn=prepare,
        )


def test_a_folder_of_odd_files_trains_and_what_was_set_aside_is_named(
    whole: PretrainResult, loaded: Loaded, data: Data
) -> None:
    assert loaded.images.training.count() == 16 + len(ODD) + len(ORDINARY)
    for name, reason in data.unusable.items():
        lines = [line for line in loaded.printed.splitlines() if "set aside" in line and name in line]
        assert lines and reason in lines[0], name


def test_a_run_leaves_checkpoints_curves_pictures_and_a_model(whole: PretrainResult, config: PretrainConfig) -> None:
    assert step_of(whole.checkpoint) == STEPS
    assert sorted(losses(whole)) == list(range(1, STEPS + 1))
    client = MlflowClient(whole.tracking_uri)
    run = client.get_run(whole.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.temperature"] == "0.2"
    assert run.data.params["encoder.weights"] == "random"
    for name in ("loss/global", "loss/local", "contrastive/top1", "feature/std", "feature/effective_rank"):
        assert name in run.data.metrics
    for name in ("gradient/norm", "throughput/images_per_second", "throughput/mfu", "eval/retrieval/rank1"):
        assert name in run.data.metrics
    pictures = {item.path for item in client.list_artifacts(whole.run_id, "pivots")}
    assert pictures == {"pivots/step-00000000.png", f"pivots/step-{STEPS:08d}.png"}
    top = {item.path for item in client.list_artifacts(whole.run_id)}
    assert {"neighbours.png", "config.yaml"} <= top


def alive(name: str) -> list[Any]:
    """Return the actors of a class, as by the name of their process."""
    running: Any = [("class_name", "=", name), ("state", "=", "ALIVE")]
    return list_actors(filters=running)


def test_a_run_leaves_no_process_that_splits_its_views(whole: PretrainResult) -> None:
    wait_for(lambda: not alive("SplitCoordinator"), 20.0)


def test_the_first_scores_are_those_of_the_untrained_encoder(whole: PretrainResult, loaded: Loaded) -> None:
    """They are taken after the first step, and the encoder of then scores otherwise."""

    def scores(encoder: Encoder) -> dict[str, float]:
        test, other = (
            embed_decoded(
                encoder.eval(),
                loaded.images.decoded["gallery"].iter_batches(batch_size=128),
                view,
                torch.device("cpu"),
                torch.float32,
            )
            for view in ("image", "view")
        )
        return score(Seen(test, other_view=other.features), PROBES)

    client = MlflowClient(whole.tracking_uri)
    untrained, after = (
        scores(load_encoder(path, untrained=first)[0])
        for path, first in ((whole.checkpoint, True), (f"{whole.run_dir}/{directory_name(1)}", False))
    )
    for name, value in untrained.items():
        points = {point.step: point.value for point in client.get_metric_history(whole.run_id, f"eval/{name}")}
        assert sorted(points) == [0, STEPS] and points[0] == pytest.approx(value, rel=1e-4), name
    assert after["alignment"] != pytest.approx(untrained["alignment"], rel=1e-3)


def test_the_checkpoint_gives_back_the_encoder(whole: PretrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(whole.run_dir).parent)
    encoder, about = load_encoder("whole")
    assert about["step"] == STEPS and about["run_id"] == whole.run_id
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.feature_dim)
    untrained, _ = load_encoder(whole.checkpoint, untrained=True)
    start, trained = untrained.state_dict(), encoder.state_dict()
    changed = [name for name in start if not torch.equal(start[name], trained[name])]
    assert changed and not any("patch_embed" in name for name in changed), "only the patch embedding is frozen"


def test_two_workers_compute_what_one_computes_though_their_machine_is_lost_while_mlflow_is_down(
    whole: PretrainResult, config: PretrainConfig, tmp_path: Path
) -> None:
    """The run lies in a bucket. After 5 steps its workers are killed, and all that their disk held for MLflow is lost.

    Up to there, in float32, losses and parameters and statistics agree to 2e-4: only the order of sums differs, which
    AdamW amplifies where a gradient is nearly zero; tests/lodisc shows in float64 that nothing else does. From there on
    losses agree to 5e-3, while those of other images differ by tenths.

    It starts a Ray, twice two workers and two MLflow servers: half a minute.
    """
    run_dir, log = "s3://lab/runs/first", tmp_path / "run.log"
    make_database(tmp_path / "mlflow.db")
    with served_bucket("lab"):
        with ExitStack() as still, Server(tmp_path) as server:
            two = replace(config, name="first", storage="s3://lab/runs", compute=ComputeConfig(workers=2))
            run = start(replace(two, tracking=TrackingConfig(uri=server.uri)), tmp_path)
            still.enter_context(standing_still(run_dir, 2, log.read_text))
        kill_worker_after(run_dir, 5, log.read_text)
        folder = RunFolder(run_dir)
        shutil.rmtree(Path(folder.read_json("tracking.json")["buffer_path"]).parent)
        with Server(tmp_path, server.port):
            assert run.wait(300) == 0, log.read_text()
            result = PretrainResult(**folder.read_json(FINISHED))
            tracked = MlflowClient(result.tracking_uri).get_run(result.run_id)
            curve = losses(result)
        one, other = weights_at(whole, 5), weights_at(result, 5)
        assert folder.finished_steps() == STEPS
    assert (tracked.info.status, tracked.data.tags["restarts"]) == ("FINISHED", "1")
    expected = losses(whole)
    assert sorted(curve) == sorted(expected)
    assert max(abs(expected[step] - curve[step]) for step in range(1, 6)) < 2e-4
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=2e-4, msg=name)
    assert max(abs(expected[step] - curve[step]) for step in range(6, STEPS + 1)) < 5e-3


def test_a_run_that_is_told_to_end_goes_on_to_the_same_end(
    whole: PretrainResult, config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By SIGTERM, as a scheduler does; then its worker is killed and replaced, and it is told to end by Ctrl-C.

    Its first steps are profiled, and at last Ray's own list of its checkpoints is cut off. Workers start four times,
    the first with a Ray of their own: 45 s.
    """
    told, folder, log = replace(config, name="told"), RunFolder(f"{config.storage}/told"), tmp_path / "run.log"
    run = start(told, tmp_path, "--profile", "2")
    with standing_still(folder.path, 3, log.read_text):
        run.send_signal(signal.SIGTERM)
        wait_for(lambda: folder.has(LEAVE), why=log.read_text)
        time.sleep(SECONDS_BETWEEN_LOOKS)  # The worker's next look is its first doing.
    assert run.wait(60) == 143, log.read_text()
    stopped = folder.finished_steps()
    assert 3 <= stopped < STEPS and f"the run was told to end and did, at step {stopped}" in log.read_text()
    handle = RunHandle(**folder.read_json("tracking.json"))
    client = MlflowClient(handle.uri)
    steps = [point.step for point in client.get_metric_history(handle.run_id, "loss")]
    assert client.get_run(handle.run_id).info.status == "KILLED" and steps == list(range(1, stopped + 1))
    assert_profile(handle, "steps-00000002-00000003")

    def disturb() -> None:
        kill_worker_after(folder.path, stopped + 1)
        with standing_still(folder.path, stopped + 2):
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: folder.has(LEAVE))
            time.sleep(SECONDS_BETWEEN_LOOKS)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell has its background jobs ignore it.
    try:
        assert main(["pretrain", "--config", str(tmp_path / "recipe.yaml"), "--resume"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
        disturbing.join()
    assert f"going on from step {stopped + 1}" in capsys.readouterr().err
    run_in_mlflow = client.get_run(handle.run_id)
    assert (run_in_mlflow.info.status, run_in_mlflow.data.tags["restarts"]) == ("KILLED", "1")
    wait_for(lambda: not alive("RayTrainWorker"), 60.0)
    assert stopped + 2 <= folder.finished_steps() < STEPS
    register = Path(folder.path, "checkpoint_manager_snapshot.json")
    register.write_text(register.read_text()[:100])

    resumed = pretrain(replace(told, resume=True))
    assert resumed.run_id == handle.run_id and client.get_run(handle.run_id).info.status == "FINISHED"
    assert_same_end(resumed, whole)
    with pytest.raises(ValueError, match="finished"):
        pretrain(replace(told, resume=True))


def assert_profile(run: RunHandle, name: str) -> None:
    client = MlflowClient(run.uri)
    kept = {item.path for item in client.list_artifacts(run.run_id, "profile")}
    assert kept == {f"profile/{name}.json.gz", f"profile/{name}.txt"}
    with gzip.open(client.download_artifacts(run.run_id, f"profile/{name}.json.gz")) as stream:
        events = [event.get("name") for event in json.load(stream)["traceEvents"]]
    assert events.count("forward") == events.count("optimizer") == 2
    assert "aten::addmm" in Path(client.download_artifacts(run.run_id, f"profile/{name}.txt")).read_text()


def test_the_time_of_a_step_is_accounted_for(whole: PretrainResult, config: PretrainConfig) -> None:
    client = MlflowClient(whole.tracking_uri)

    def curve(name: str) -> dict[int, float]:
        return {point.step: point.value for point in client.get_metric_history(whole.run_id, name)}

    phases, shares = {phase: curve(f"time/{phase}") for phase in PHASES}, []
    for step, rate in curve("throughput/images_per_second").items():
        parts = {phase: times[step] for phase, times in phases.items()}
        shares.append(sum(parts.values()) * rate / config.optim.batch_size)
        assert min(parts[phase] for phase in ("forward", "backward", "optimizer")) > 0
    # Of single steps a part is lost to the thread that imports MLflow meanwhile.
    assert np.median(shares) > 0.7 and max(shares) < 1.05, shares
    assert all(phases["report"][step] > 0 for step in range(2, STEPS + 1)), "every step saves a checkpoint"


@pytest.mark.privileged
def test_a_full_disk_ends_the_run_and_loses_no_checkpoint(
    whole: PretrainResult, config: PretrainConfig, loaded: Loaded, disk: Path
) -> None:
    """The disk that holds the run is full while the run goes on; freed, the run is resumed to the same end.

    Workers start twice: half a minute.
    """
    full = replace(
        config,
        name="full",
        storage=str(disk),
        checkpoint=CheckpointingConfig(every_steps=1, keep=2),
        compute=ComputeConfig(restarts=0),
    )
    filler = threading.Thread(target=fill_after, args=(disk, disk / "full", 3))
    filler.start()
    with pytest.raises(WorkersFailedError, match="No space left on device"):
        pretrain(full, images=loaded.images)
    filler.join()
    (disk / "ballast").unlink()
    resumed = pretrain(replace(full, resume=True), images=loaded.images)
    assert_same_end(resumed, whole)


def test_divergence_stops_with_the_step_and_keeps_the_last_checkpoint(config: PretrainConfig, loaded: Loaded) -> None:
    optim = replace(config.optim, base_lr=1e30, warmup_epochs=0, clip_norm=None)
    diverging = replace(config, name="diverging", optim=optim, checkpoint=CheckpointingConfig(every_steps=1))
    with pytest.raises(NonFiniteLossError, match=r"step \d+: loss"):
        pretrain(diverging, images=loaded.images)
    last = last_checkpoint(f"{config.storage}/diverging")
    assert last is not None
    uri = f"sqlite:///{config.storage}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("lodisc")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'diverging'")
    assert [run.info.status for run in runs] == ["FAILED"]


def test_bad_requests_are_refused_before_any_training(
    config: PretrainConfig, whole: PretrainResult, loaded: Loaded
) -> None:
    with pytest.raises(ValueError, match="name: a run 'whole' exists"):
        pretrain(config)
    with pytest.raises(ValueError, match=r"optim.batch_size \(64\) exceeds the 27"):
        pretrain(replace(config, name="large", optim=replace(config.optim, batch_size=64)))
    with pytest.raises(ValueError, match="compute"):
        pretrain(replace(config, name="wide", compute=ComputeConfig(workers=8, cpus_per_worker=1)))
    with pytest.raises(
        ValueError, match=f"profile: {STEPS} steps and 1 before them to warm up are more than the {STEPS}"
    ):
        pretrain(replace(config, name="traced", profile=STEPS), images=loaded.images)
    assert not (Path(config.storage) / "large").exists()


def test_the_config_is_kept_beside_the_checkpoints(whole: PretrainResult, config: PretrainConfig) -> None:
    saved = read_state(find_checkpoint(whole.checkpoint))["config"]
    assert saved == to_dict(config)
