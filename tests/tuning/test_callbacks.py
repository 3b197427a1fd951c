"""How the end of a trial is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.tune import Result

from pipelines.run.config import TrackingConfig
from pipelines.run.folder import RunFolder
from pipelines.tracking.runs import RunHandle, create_run
from pipelines.tracking.tracker import Tracker
from tuning.callbacks import close_run, explain
from tuning.sweep import has_ended
from tuning.trial import COMPLETED, DIVERGED, FAILED, STOPPED, Outcome, read_outcome, write_outcome

TRACEBACK = (
    "ray::run_trial()\n  File 'x.py', line 1\npipelines.train_loop.NonFiniteLossError: step 3: loss nan. Lower it.\n"
)


def began(sweep: Path, name: str) -> tuple[RunFolder, RunHandle]:
    """Return a trial that has an MLflow run."""
    folder = RunFolder(str(sweep / name))
    handle = create_run(TrackingConfig(), str(sweep), name, {})
    folder.write_json("tracking.json", handle.__dict__)
    return folder, handle


def test_a_diverged_trial_is_told_from_a_failed_one_and_explained_in_a_line() -> None:
    assert explain(TRACEBACK) == (DIVERGED, "step 3: loss nan. Lower it.")
    assert explain("Traceback\n  line\nOSError: disk full\n") == (FAILED, "OSError: disk full")
    memory = "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory."
    assert explain(f"Traceback\n  line\n{memory}\nRefer to the documentation: https://x.y.\n") == (FAILED, memory)
    assert explain("") == (FAILED, "no reason is known")


def test_only_a_failed_trial_is_tried_again(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "trial"))
    assert read_outcome(folder) is None
    for outcome in (Outcome(COMPLETED, 3.0, 10.0), Outcome(STOPPED, 1.0, 5.0), Outcome(DIVERGED, reason="nan")):
        write_outcome(folder, outcome)
        assert read_outcome(folder) == outcome and outcome.final
    assert not Outcome(FAILED, reason="disk full").final


def test_a_trial_has_ended_by_its_own_word_or_by_its_error(tmp_path: Path) -> None:
    """Ray Tune itself counts a trial that was interrupted as terminated, and forgets that one was when it is killed."""
    sweep, trial = RunFolder(str(tmp_path)), RunFolder(str(tmp_path / "trial"))
    result = Result({"done": True}, None, None, path=str(tmp_path / "tune" / "trial"))
    assert not has_ended(result, sweep)
    assert has_ended(replace(result, error=OSError("disk full")), sweep)
    write_outcome(trial, Outcome(FAILED, reason="disk full"))
    assert not has_ended(result, sweep), "it is being tried again"
    write_outcome(trial, Outcome(COMPLETED, 3.0, 10.0))
    assert has_ended(replace(result, metrics={"done": False}), sweep)


@pytest.mark.parametrize(
    ("outcome", "status", "tag"),
    [
        (Outcome(COMPLETED, 3.0, 10.0), "FINISHED", "completed"),
        (Outcome(STOPPED, 1.0, 5.0), "KILLED", "stopped early"),
        (Outcome(DIVERGED, reason="nan"), "FAILED", "diverged"),
        (None, "KILLED", "interrupted"),
    ],
)
def test_mlflow_says_how_a_trial_ended(tmp_path: Path, outcome: Outcome | None, status: str, tag: str) -> None:
    folder, handle = began(tmp_path, "trial")
    if outcome:
        write_outcome(folder, outcome)
    assert close_run(folder)
    run = MlflowClient(handle.uri).get_run(handle.run_id)
    assert (run.info.status, run.data.tags["trial.outcome"]) == (status, tag)
    assert run.data.tags.get("trial.reason", "") == (outcome.reason if outcome else "")
    assert outcome is None or run.info.end_time == outcome.ended


def test_a_run_is_not_closed_under_the_hands_of_its_worker(tmp_path: Path) -> None:
    folder, handle = began(tmp_path, "trial")
    tracker = Tracker(handle)
    tracker.log_metrics({"loss": 1.0}, 1)
    while not MlflowClient(handle.uri).get_metric_history(handle.run_id, "loss"):
        pass
    assert not close_run(folder)
    assert MlflowClient(handle.uri).get_run(handle.run_id).info.status == "RUNNING"
    tracker.close()
    assert close_run(folder)
    assert close_run(RunFolder(str(tmp_path / "never-began")))
