"""Whole sweeps on a real Ray and a real MLflow store, of trials that take seconds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import save_file

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from pipelines.config import DataConfig, load_recipe, to_dict
from pipelines.pretrain import pretrain
from tests.environment import REPOSITORY, environment_outside
from tuning.config import SweepConfig
from tuning.report import SweepReport
from tuning.sweep import tune
from tuning.trial import COMPLETED, DIVERGED, STOPPED

pytestmark = pytest.mark.slow
EPOCHS, STEPS_PER_EPOCH = 2, 3
TINY = {
    "encoder.arch": "vit_tiny_patch16_224",
    "encoder.image_size": 32,
    "encoder.depth": 2,
    "model.hidden_dim": 64,
    "model.output_dim": 32,
    "optim.epochs": EPOCHS,
    "optim.batch_size": 8,
    "optim.warmup_epochs": 0,
    "optim.clip_norm": None,
    "optim.precision": "fp32",
    "evaluation.every_epochs": 1,
}


@pytest.fixture(scope="module")
def config(image_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A grid of two trials, of which the first one diverges at once."""
    images = str(image_folder(classes=2, per_class=13))
    return SweepConfig(
        recipe="grocery",
        data=DataConfig(images=images, eval_images=images),
        overrides=TINY,
        space={"optim.base_lr": {"grid": [1e30, 1e-3]}},
        sampler="grid",
        scheduler="none",
        name="first",
        storage=str(tmp_path_factory.mktemp("runs")),
    )


@pytest.fixture(scope="module")
def first(ray_session: None, config: SweepConfig) -> SweepReport:
    return tune(config)


def store(config: SweepConfig) -> MlflowClient:
    return MlflowClient(f"sqlite:///{config.storage}/mlflow.db")


def runs_of(config: SweepConfig) -> tuple[Run, dict[str, Run]]:
    """Return a sweep's MLflow run, and those listed under it by name."""
    runs = store(config).search_runs(["1"])
    (parent,) = [run for run in runs if run.info.run_name == config.name]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {run.info.run_name: run for run in below}


def losses(config: SweepConfig, run_id: str) -> dict[int, float]:
    history = store(config).get_metric_history(run_id, "loss")
    assert len({point.step for point in history}) == len(history), "a step was logged twice"
    return {point.step: point.value for point in history}


def test_a_failing_trial_is_marked_and_explained_and_the_sweep_goes_on(first: SweepReport, config: SweepConfig) -> None:
    assert [trial.outcome for trial in first.trials] == [DIVERGED, COMPLETED]
    assert "Lower optim.base_lr" in first.trials[0].reason
    parent, trials = runs_of(config)
    assert [trials[name].info.status for name in sorted(trials)] == ["FAILED", "FINISHED"]
    assert parent.info.status == "FINISHED"


def test_mlflow_keeps_trials_with_all_they_have_below_their_sweep(first: SweepReport, config: SweepConfig) -> None:
    client, (parent, trials) = store(config), runs_of(config)
    trial = first.trials[1]
    run = trials[trial.name]
    assert run.data.params["optim.base_lr"] == str(trial.params["optim.base_lr"])
    assert run.data.params["model.temperature"] == "0.2"
    assert sorted(losses(config, trial.run_id)) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert sorted(trial.scores) == list(range(EPOCHS + 1))
    assert f"pivots/step-{EPOCHS * STEPS_PER_EPOCH:08d}.png" in {
        item.path for item in client.list_artifacts(trial.run_id, "pivots")
    }
    kept = {item.path for item in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/trials.json", "report/best.yaml", "report/parallel_coordinates.png"} <= kept


def test_the_best_config_pretrains_as_its_trial_did(first: SweepReport, config: SweepConfig) -> None:
    """The trials read views that were drawn once for all of them, this run draws its own."""
    assert first.best is not None
    again = load_recipe(f"{config.storage}/first/best.yaml", {"name": "again", "compute.cpus_per_worker": 0.5})
    expected, found = losses(config, first.best.run_id), losses(config, pretrain(again).run_id)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_second_sweep_in_the_same_store_keeps_to_itself_and_stops_what_falls_behind(
    first: SweepReport, config: SweepConfig
) -> None:
    """At its far greater rate the second trial is the worse one: halving lets only the first go on."""
    before = runs_of(config)[1].keys()
    second = replace(config, name="second", objective="rankme", scheduler="asha", reduction_factor=2, concurrent=1)
    # Drawn with this seed, the first rate is the lower one.
    space = {"optim.base_lr": {"choice": [1e-3, 1.0]}}
    found = tune(replace(second, sampler="random", trials=2, seed=1, space=space))
    assert len(found.trials) == 2 and all(trial.name.startswith("second-") for trial in found.trials)
    assert runs_of(config)[1].keys() == before
    better, worse = found.trials
    assert better.scores[1] > worse.scores[1]
    assert (better.outcome, better.epoch, worse.outcome) == (COMPLETED, EPOCHS, STOPPED)
    wait_for(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, f"the sweep ended:\n{process.communicate()}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def started(config: SweepConfig, *options: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own, with a Ray of its own."""
    path = Path(config.storage) / f"{config.name}.yaml"
    path.write_text(yaml.safe_dump(to_dict(replace(config, resume=False))))
    command = [sys.executable, "-m", "cluster.cli", "tune", "--config", str(path), *options]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment_outside(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell has its background jobs ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_killed_sweep_and_an_interrupted_one_continue_without_repeating_what_has_ended(
    config: SweepConfig, tmp_path: Path, ray_session: None
) -> None:
    """By the sampler that is the default, whose state is kept; by the median rule, under which no trial may pause."""
    space = {"model.temperature": {"log": [0.1, 0.4]}}
    config = replace(config, name="killed", space=space, sampler="optuna", trials=2, concurrent=1)
    config = replace(config, scheduler="median", storage=str(tmp_path))
    outcomes = lambda: sorted(tmp_path.glob("killed/killed-*/outcome.json"))  # noqa: E731
    begun = lambda: {path.parent for path in tmp_path.glob("killed/killed-*/step-*")}  # noqa: E731

    with started(config) as process:
        wait_for(lambda: bool(outcomes()), process)
        with pytest.raises(ValueError, match="another process works on 'killed'"):
            tune(replace(config, resume=True))
        process.send_signal(signal.SIGKILL)
    said = {path: path.read_text() for path in outcomes()}

    with started(config, "--resume") as process:
        wait_for(lambda: any(not (trial / "outcome.json").exists() for trial in begun()), process)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "continue with the same command and --name killed --resume" in output
    parent, trials = runs_of(config)
    assert {run.info.status for run in (parent, *trials.values())} <= {"KILLED", "FINISHED"}

    found = tune(replace(config, resume=True))
    assert [trial.outcome for trial in found.trials] == [COMPLETED] * 2
    assert {path: path.read_text() for path in said} == said, "a trial that had ended was run again"
    for trial in found.trials:
        assert sorted(losses(config, trial.run_id)) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    with pytest.raises(ValueError, match="is finished"):
        tune(replace(config, resume=True))


def test_a_trial_that_failed_is_tried_again_on_resume(config: SweepConfig, tmp_path: Path, ray_session: None) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_text("not yet")
    broken = replace(config, name="broken", space={"encoder.weights": {"grid": [str(weights)]}})
    with pytest.raises(ValueError, match=r"no trial of broken came to a score: .*cannot be read as a state dict"):
        tune(broken)
    encoder = Encoder(EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, depth=2))
    save_file(encoder.vit.state_dict(), weights)
    found = tune(replace(broken, resume=True))
    assert [trial.outcome for trial in found.trials] == [COMPLETED]
    assert runs_of(broken)[0].info.status == "FINISHED"


def test_images_without_labels_are_refused_before_any_trial(
    ray_session: None, config: SweepConfig, image_folder: Any
) -> None:
    flat = image_folder(classes=1, per_class=8) / "class-0"
    held_out = replace(config, name="unlabelled", data=DataConfig(images=config.data.images, eval_images=str(flat)))
    with pytest.raises(ValueError, match=r"objective: retrieval/rank1 needs a fine label .*, and .*000\.jpg"):
        tune(held_out)
    assert not (Path(config.storage) / "unlabelled").exists()


def test_a_sweep_that_cannot_fit_is_refused_before_images_are_read(ray_session: None, config: SweepConfig) -> None:
    with pytest.raises(ValueError, match=r"concurrent: the cluster \(2 CPUs, 0 GPUs\) holds 2 trials"):
        tune(replace(config, name="wide", concurrent=3))
    assert not (Path(config.storage) / "wide").exists()


def test_a_ray_without_dashboard_is_refused_even_beside_one_that_has_it(ray_session: None) -> None:
    script = (
        "import ray\nfrom tuning.sweep import require_dashboard\n"
        "ray.init(num_cpus=1, include_dashboard=False)\nrequire_dashboard()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=environment_outside(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.splitlines()[-1].startswith("ValueError: address: a sweep needs a Ray whose dashboard answers")
