"""Pretraining end to end on a real Ray: the same run in one piece, in two pieces, and on two workers."""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from lodisc.config import EncoderConfig, ModelConfig
from pipelines.causes import WorkersFailedError
from pipelines.checkpoint import directory_name, find_checkpoint, last_checkpoint, load_encoder, read_state, step_of
from pipelines.config import (
    CheckpointingConfig,
    ComputeConfig,
    DataConfig,
    InTrainingConfig,
    OptimConfig,
    PretrainConfig,
    to_dict,
)
from pipelines.pretrain import PretrainResult, pretrain
from pipelines.stopwatch import PHASES
from pipelines.train_loop import NonFiniteLossError
from tests.pipelines.bad_images import make_bad_folder
from tests.pipelines.disk import fill_after
from tests.pipelines.kill import kill_worker_after

pytestmark = pytest.mark.slow
STEPS = 9


@pytest.fixture(scope="module")
def config(ray_session: None, image_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Nine steps: 26 images in batches of 8, three epochs. Random pivots, so that their seeding is tested too."""
    return PretrainConfig(
        data=DataConfig(images=str(image_folder(classes=2, per_class=13))),
        encoder=EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2),
        model=ModelConfig(hidden_dim=64, output_dim=32, local_view="tokens", head_dropout=0.0),
        optim=OptimConfig(epochs=3, batch_size=8, base_lr=0.01, warmup_epochs=1, clip_norm=1.0, precision="fp32"),
        checkpoint=CheckpointingConfig(every_steps=1, keep=STEPS),
        evaluation=InTrainingConfig(every_epochs=3),
        name="whole",
        storage=str(tmp_path_factory.mktemp("runs")),
    )


@pytest.fixture(scope="module")
def whole(config: PretrainConfig) -> PretrainResult:
    return pretrain(config)


def losses(result: PretrainResult) -> dict[int, float]:
    history = MlflowClient(result.tracking_uri).get_metric_history(result.run_id, "loss")
    assert len({point.step for point in history}) == len(history), "a step was logged twice"
    return {point.step: point.value for point in history}


def weights_at(result: PretrainResult, step: int) -> dict[str, torch.Tensor]:
    return read_state(find_checkpoint(f"{result.run_dir}/{directory_name(step)}"))["model"]


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


def test_the_checkpoint_gives_back_the_encoder(whole: PretrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(whole.run_dir).parent)
    encoder, about = load_encoder("whole")
    assert about["step"] == STEPS and about["run_id"] == whole.run_id
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.feature_dim)
    untrained, _ = load_encoder(whole.checkpoint, untrained=True)
    start, trained = untrained.state_dict(), encoder.state_dict()
    changed = [name for name in start if not torch.equal(start[name], trained[name])]
    assert changed and not any("patch_embed" in name for name in changed), "only the patch embedding is frozen"


def test_two_workers_compute_what_one_computes(whole: PretrainResult, config: PretrainConfig) -> None:
    """After 5 steps in float32, losses agree to 1e-4 and parameters and statistics to 2e-4.

    Only the order of sums differs, which AdamW amplifies where a gradient is nearly zero; tests/lodisc shows in float64
    that nothing else does.
    """
    two = pretrain(replace(config, name="two-workers", compute=ComputeConfig(workers=2), profile=2))
    one_curve, two_curve = losses(whole), losses(two)
    assert max(abs(one_curve[step] - two_curve[step]) for step in range(1, 6)) < 1e-4
    one, other = weights_at(whole, 5), weights_at(two, 5)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=2e-4, msg=name)
    assert_profile(two, "steps-00000002-00000003")


def assert_profile(result: PretrainResult, name: str) -> None:
    client = MlflowClient(result.tracking_uri)
    kept = {item.path for item in client.list_artifacts(result.run_id, "profile")}
    assert kept == {f"profile/{name}.json.gz", f"profile/{name}.txt"}
    with gzip.open(client.download_artifacts(result.run_id, f"profile/{name}.json.gz")) as stream:
        events = [event.get("name") for event in json.load(stream)["traceEvents"]]
    assert events.count("forward") == events.count("optimizer") == 2
    assert "aten::addmm" in Path(client.download_artifacts(result.run_id, f"profile/{name}.txt")).read_text()


def test_the_time_of_a_step_is_accounted_for(whole: PretrainResult, config: PretrainConfig) -> None:
    client = MlflowClient(whole.tracking_uri)

    def curve(name: str) -> dict[int, float]:
        return {point.step: point.value for point in client.get_metric_history(whole.run_id, name)}

    phases = {phase: curve(f"time/{phase}") for phase in PHASES}
    for step, rate in curve("throughput/images_per_second").items():
        parts = {phase: times[step] for phase, times in phases.items()}
        assert 0.7 < sum(parts.values()) * rate / config.optim.batch_size < 1.05, (step, parts)
        assert min(parts[phase] for phase in ("forward", "backward", "optimizer")) > 0
    assert all(phases["report"][step] > 0 for step in range(2, STEPS + 1)), "every step saves a checkpoint"


def test_resume_equals_uninterrupted(whole: PretrainResult, config: PretrainConfig) -> None:
    """The worker is killed in the middle of an epoch; the resumed run ends with bit-identical parameters."""
    broken = replace(config, name="broken", compute=ComputeConfig(restarts=0))
    killer = threading.Thread(target=kill_worker_after, args=(Path(config.storage) / "broken", 4))
    killer.start()
    with pytest.raises(WorkersFailedError):
        pretrain(broken)
    killer.join()
    last = last_checkpoint(f"{config.storage}/broken")
    assert last is not None and 4 <= step_of(last.path) < STEPS
    register = Path(f"{config.storage}/broken/checkpoint_manager_snapshot.json")
    register.write_text(register.read_text()[:100])

    resumed = pretrain(replace(broken, resume=True))
    assert losses(resumed) == losses(whole)
    one, other = weights_at(whole, STEPS), weights_at(resumed, STEPS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="finished"):
        pretrain(replace(broken, resume=True))


def test_a_killed_worker_is_replaced(whole: PretrainResult, config: PretrainConfig) -> None:
    """The run goes on by itself from its last checkpoint, to bit-identical parameters."""
    wounded = replace(config, name="wounded")
    killer = threading.Thread(target=kill_worker_after, args=(Path(config.storage) / "wounded", 4))
    killer.start()
    result = pretrain(wounded)
    killer.join()
    assert losses(result) == losses(whole)
    one, other = weights_at(whole, STEPS), weights_at(result, STEPS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert MlflowClient(result.tracking_uri).get_run(result.run_id).data.tags["restarts"] == "1"


@pytest.mark.privileged
def test_a_full_disk_ends_the_run_and_loses_no_checkpoint(
    whole: PretrainResult, config: PretrainConfig, disk: Path
) -> None:
    """The disk that holds the run is full while the run goes on; freed, the run is resumed to the same end."""
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
        pretrain(full)
    filler.join()
    (disk / "ballast").unlink()
    resumed = pretrain(replace(full, resume=True))
    assert losses(resumed) == losses(whole)
    one, other = weights_at(whole, STEPS), weights_at(resumed, STEPS)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_divergence_stops_with_the_step_and_keeps_the_last_checkpoint(config: PretrainConfig) -> None:
    optim = replace(config.optim, base_lr=1e30, warmup_epochs=0, clip_norm=None)
    diverging = replace(config, name="diverging", optim=optim, checkpoint=CheckpointingConfig(every_steps=1))
    with pytest.raises(NonFiniteLossError, match=r"step \d+: loss"):
        pretrain(diverging)
    last = last_checkpoint(f"{config.storage}/diverging")
    assert last is not None
    uri = f"sqlite:///{config.storage}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("lodisc")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'diverging'")
    assert [run.info.status for run in runs] == ["FAILED"]


def test_a_folder_of_odd_files_trains_and_names_what_it_set_aside(
    config: PretrainConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unusable = make_bad_folder(tmp_path / "odd")
    optim = replace(config.optim, epochs=1, batch_size=4, warmup_epochs=0)
    pretrain(replace(config, name="odd", data=DataConfig(images=str(tmp_path / "odd")), optim=optim))
    printed = capfd.readouterr().out
    for name, reason in unusable.items():
        lines = [line for line in printed.splitlines() if "set aside" in line and name in line]
        assert lines and reason in lines[0], name


def test_bad_requests_are_refused_before_any_training(config: PretrainConfig, whole: PretrainResult) -> None:
    with pytest.raises(ValueError, match="name: a run 'whole' exists"):
        pretrain(config)
    with pytest.raises(ValueError, match=r"optim.batch_size \(64\) exceeds the 26"):
        pretrain(replace(config, name="large", optim=replace(config.optim, batch_size=64)))
    with pytest.raises(ValueError, match="compute"):
        pretrain(replace(config, name="wide", compute=ComputeConfig(workers=8, cpus_per_worker=1)))
    with pytest.raises(ValueError, match="profile: 9 steps and 1 before them to warm up are more than the 9"):
        pretrain(replace(config, name="traced", profile=STEPS))
    assert not (Path(config.storage) / "large").exists()


def test_the_config_is_kept_beside_the_checkpoints(whole: PretrainResult, config: PretrainConfig) -> None:
    saved = read_state(find_checkpoint(whole.checkpoint))["config"]
    assert saved == to_dict(config)
