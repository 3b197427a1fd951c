"""Watch a sweep from its driver: a line a score, and the books of every trial that ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray.tune
from ray.tune.experiment import Trial as TuneTrial

from pipelines.run_folder import RunFolder
from pipelines.tracking import RunHandle, finish_run
from pipelines.train_loop import NonFiniteLossError
from tuning.objective import Objective
from tuning.trial import COMPLETED, DIVERGED, FAILED, INTERRUPTED, OUTCOME, STOPPED, Outcome, write_outcome

# In MLflow's words. A trial that a scheduler stopped is told from one that went to its end by its status too.
STATUS = {COMPLETED: "FINISHED", STOPPED: "KILLED", DIVERGED: "FAILED", FAILED: "FAILED"}
LONGEST_REASON = 500


@dataclass
class SweepWatcher(ray.tune.Callback):
    """Told by Ray Tune of what happens to trials. Ray Tune keeps it with its state, so it holds plain values alone.

    Attributes:
        sweep: the sweep's folder, which holds those of its trials.
        objective: of the sweep.
        epochs: of a trial that goes to its end.
        fields: of the search space.
    """

    sweep: str
    objective: Objective
    epochs: int
    fields: list[str]

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Say which values the trial has."""
        values = ", ".join(f"{name.split('.')[-1]} {_short(trial.config[name])}" for name in self.fields)
        print(f"{trial}: {values}", flush=True)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Say how the trial does."""
        score = f"{self.objective.name} {result['objective']:.2f}"
        print(f"{trial}: epoch {result['epoch']:g} of {self.epochs}, {score}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Close the books of a trial that ended well or was stopped."""
        epoch, value = trial.last_result.get("epoch", 0.0), trial.last_result.get("objective")
        self._close(trial, Outcome(COMPLETED if epoch >= self.epochs else STOPPED, epoch, value))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Close the books of a trial that failed; the sweep goes on without it."""
        last = trial.last_result or {}
        outcome, reason = explain(trial.get_error())
        self._close(trial, Outcome(outcome, last.get("epoch", 0.0), last.get("objective"), reason))

    def _close(self, trial: TuneTrial, outcome: Outcome) -> None:
        at = f" at epoch {outcome.epoch:g}" if outcome.outcome == STOPPED else ""
        print(f"{trial}: {outcome.outcome}{at}{': ' if outcome.reason else ''}{outcome.reason}", flush=True)
        folder = RunFolder(f"{self.sweep}/{trial}")
        write_outcome(folder, outcome)
        close_run(folder, STATUS[outcome.outcome], outcome)


def close_run(folder: RunFolder, status: str, outcome: Outcome) -> None:
    """Mark a trial's MLflow run as ended, if it has one, and say there how."""
    if folder.has("tracking.json"):
        tags = {"trial.outcome": outcome.outcome, **({"trial.reason": outcome.reason} if outcome.reason else {})}
        finish_run(RunHandle(**folder.read_json("tracking.json")), status, tags)


def close_interrupted(sweep: RunFolder) -> None:
    """Mark the MLflow runs of trials that have begun and not ended. They can go on when the sweep is resumed."""
    for name in sweep.folders():
        trial = RunFolder(f"{sweep.path}/{name}")
        if not trial.has(OUTCOME):
            close_run(trial, "KILLED", Outcome(INTERRUPTED))


def explain(error: BaseException | None) -> tuple[str, str]:
    """Return the outcome that an error means, and the error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason is known"]
    # Of an error in a remote process the text is a traceback, with the error itself at its end.
    _, diverged, reason = lines[-1].rpartition(f"{NonFiniteLossError.__name__}: ")
    return (DIVERGED if diverged else FAILED), reason[:LONGEST_REASON]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
