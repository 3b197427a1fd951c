"""Whole sweeps on a real Ray and a real MLflow store, of trials that take seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.tune import Experiment
from safetensors.torch import save_file

from cluster.cli import main
from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from pipelines.run.config import DataConfig, TrackingConfig, load_recipe, to_dict
from pipelines.run.folder import FINISHED, RunFolder
from pipelines.tracking.runs import create_run, log_files
from pipelines.training.pretrain import pretrain
from tests.environment import REPOSITORY, environment_outside
from tuning.callbacks import close_run
from tuning.config import SweepConfig
from tuning.report import BASE, SWEEP_TAG, SweepReport
from tuning.sweep import conclude, sampler, tune
from tuning.trial import COMPLETED, DIVERGED, FAILED, STOPPED, Outcome, write_outcome

pytestmark = pytest.mark.slow
EPOCHS, STEPS_PER_EPOCH = 2, 2
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
    """A grid of three trials: one that goes to its end, beside one that diverges at once, and then one that is worse.

    Its far greater rate makes it so, and when it comes to its first score the better one has long had its own.
    """
    images = str(image_folder(classes=2, per_class=9))
    return SweepConfig(
        recipe="grocery",
        data=DataConfig(images=images, eval_images=images),
        overrides=TINY,
        space={"optim.base_lr": {"grid": [1e-3, 1e30, 1.0]}},
        sampler="grid",
        scheduler="asha",
        reduction_factor=2,
        objective="rankme",
        name="first",
        storage=str(tmp_path_factory.mktemp("runs")),
    )


@pytest.fixture(scope="module")
def first(ray_session: None, config: SweepConfig) -> SweepReport:
    """It takes some 25 s: the workers of three trials start."""
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


def test_a_failing_trial_is_marked_and_explained_and_one_that_falls_behind_is_stopped(
    first: SweepReport, config: SweepConfig
) -> None:
    better, failed, worse = first.trials
    assert (better.outcome, better.epoch) == (COMPLETED, EPOCHS) and better == first.best
    assert failed.outcome == DIVERGED and "Lower optim.base_lr" in failed.reason
    # It goes on until Tune, which has decided so after its first epoch, has ended its worker.
    assert worse.outcome == STOPPED and better.scores[1] > worse.scores[1]
    parent, trials = runs_of(config)
    assert [trials[name].info.status for name in sorted(trials)] == ["FINISHED", "FAILED", "KILLED"]
    assert parent.info.status == "FINISHED"
    ended_first, failed_first = (trials[trial.name].info for trial in (better, failed))
    assert failed_first.start_time < ended_first.end_time, "two ran side by side"
    wait_for(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"])


def test_mlflow_keeps_trials_with_all_they_have_below_their_sweep(first: SweepReport, config: SweepConfig) -> None:
    client, (parent, trials) = store(config), runs_of(config)
    trial = first.trials[0]
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


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None or log is None, f"the sweep ended:\n{log.read_text()}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@contextmanager
def interrupted(condition: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, press Ctrl-C in this process once the condition is met."""
    left = threading.Event()

    def press() -> None:
        while not left.wait(0.1):
            if condition():
                os.kill(os.getpid(), signal.SIGINT)
                return

    pressing = threading.Thread(target=press)
    pressing.start()
    try:
        yield
    finally:
        left.set()
        pressing.join()


def test_a_sweep_that_fails_is_killed_and_interrupted_goes_on_without_repeating_what_has_ended(
    first: SweepReport, config: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the sampler that is the default, whose state is kept; by the median rule, under which no trial may pause.

    Once its first trial has ended, the second one finds its initial weights cut off; then the driver is killed. It
    takes a minute: the sweep is begun three times, and workers start in each.
    """
    weights = tmp_path / "weights.safetensors"
    encoder = Encoder(EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, depth=2))
    save_file(encoder.vit.state_dict(), weights)
    others = runs_of(config)[1].keys()
    config = replace(
        config,
        name="second",
        overrides=TINY | {"encoder.weights": str(weights)},
        space={"model.temperature": {"log": [0.1, 0.4]}},
        objective=None,
        sampler="optuna",
        scheduler="median",
        trials=2,
        concurrent=1,
    )
    folder = Path(config.storage) / config.name
    outcomes = lambda: sorted(folder.glob("second-*/outcome.json"))  # noqa: E731
    steps = lambda: sorted(folder.glob("second-002-*/step-*"))  # noqa: E731
    file = tmp_path / "second.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    command = ["tune", "--config", str(file)]

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", *command],
            cwd=REPOSITORY,
            env=environment_outside(),
            stdout=log,
            stderr=log,
        )
    wait_for(lambda: bool(outcomes()), process, tmp_path / "log")
    weights.write_text("cut off")
    with pytest.raises(ValueError, match="another process works on 'second'"):
        tune(replace(config, resume=True))
    wait_for(lambda: len(outcomes()) == 2, process, tmp_path / "log")
    process.kill()
    process.wait()
    said = {path: path.read_text() for path in outcomes()}
    (ended,) = [path for path, outcome in said.items() if f'"{COMPLETED}"' in outcome]
    (failed,) = said.keys() - {ended}
    assert "cannot be read as a state dict" in said[failed] and f'"{FAILED}"' in said[failed]

    save_file(encoder.vit.state_dict(), weights)
    with interrupted(lambda: bool(steps())):
        assert main([*command, "--resume"]) == 130
    assert "continue with the same command and --name second --resume" in capsys.readouterr().out
    parent, trials = runs_of(config)
    assert parent.info.status == "KILLED"
    assert sorted(run.info.status for run in trials.values()) == ["FINISHED", "KILLED"]

    found = tune(replace(config, resume=True))
    assert [trial.outcome for trial in found.trials] == [COMPLETED] * 2
    assert ended.read_text() == said[ended], "a trial that had ended was run again"
    for trial in found.trials:
        assert sorted(losses(config, trial.run_id)) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert runs_of(config)[0].info.status == "FINISHED"
    assert len(others) == len(first.trials) and not others & runs_of(config)[1].keys(), "sweeps keep to themselves"
    with pytest.raises(ValueError, match="is finished"):
        tune(replace(config, resume=True))


def test_a_sweep_of_which_no_trial_came_to_a_score_says_why_and_can_go_on(
    config: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, storage = RunFolder(f"{tmp_path}/mine"), str(tmp_path)
    sweep = create_run(TrackingConfig(), storage, "mine", to_dict(config), {SWEEP_TAG: "rankme"})
    log_files(sweep, {BASE: yaml.safe_dump(to_dict(config.base())).encode()})
    trial = RunFolder(f"{folder.path}/mine-000-abcd")
    handle = create_run(TrackingConfig(), storage, trial.name, to_dict(config.base()), {}, sweep.run_id)
    trial.write_json("tracking.json", handle.__dict__)
    write_outcome(trial, Outcome(FAILED, reason="disk full"))
    assert close_run(trial)
    with pytest.raises(ValueError, match=r"no trial of mine came to a score: disk full"):
        conclude(folder, sweep)
    assert "trials that failed: 1; the same command with --name mine --resume tries" in capsys.readouterr().out
    assert not folder.has(FINISHED)


def test_values_at_random_are_those_of_the_seed(ray_session: None, config: SweepConfig) -> None:
    space = {"optim.base_lr": {"log": [1e-3, 1.0]}}

    def drawn(seed: int) -> list[float]:
        sweep = replace(config, sampler="random", space=space, trials=3, seed=seed)
        tuned = {name: domain.for_tune() for name, domain in sweep.domains().items()}
        chosen = sampler(sweep, sweep.goal(), concurrent=8)
        chosen.add_configurations(Experiment("drawn", print, config=tuned, num_samples=sweep.trial_count()))
        return [trial.config["optim.base_lr"] for trial in iter(chosen.next_trial, None)]

    assert len(set(drawn(1))) == 3 and drawn(1) == drawn(1) != drawn(2)


def test_images_without_labels_are_refused_before_any_trial(
    ray_session: None, config: SweepConfig, image_folder: Any
) -> None:
    flat = image_folder(classes=1, per_class=8) / "class-0"
    data = DataConfig(images=config.data.images, eval_images=str(flat))
    held_out = replace(config, name="unlabelled", objective=None, data=data)
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
