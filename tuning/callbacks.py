"""Watch a sweep from its driver: a line a score, and the books of every trial that ends."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.experiment import Trial as TuneTrial

from pipelines.evaluation.scores import Score
from pipelines.run.causes import NonFiniteLossError
from pipelines.run.folder import RunFolder
from pipelines.tracking.runs import RunHandle, finish_run, is_written
from tuning.trial import COMPLETED, DIVERGED, FAILED, INTERRUPTED, STOPPED, Outcome, read_outcome, write_outcome

# In MLflow's words. A trial that a scheduler stopped is told from one that went to its end by its status too.
STATUS = {COMPLETED: "FINISHED", STOPPED: "KILLED", INTERRUPTED: "KILLED", DIVERGED: "FAILED", FAILED: "FAILED"}
LONGEST_END = 30.0  # seconds that the processes of trials have to end
LONGEST_REASON = 500
NAMED_ERROR = re.compile(r"[\w.]+(Error|Exception)(\(\w*\))?: ")


@dataclass
class SweepWatcher(ray.tune.Callback):
    """Told by Ray Tune of what happens to trials. Ray Tune keeps it with its state, so it holds plain values alone.

    Attributes:
        sweep: the sweep's folder, which holds those of its trials.
        objective: of the sweep.
        epochs: of a trial that goes to its end.
        fields: of the search space.
        open: trials that have ended, whose workers may still write to MLflow.
    """

    sweep: str
    objective: Score
    epochs: int
    fields: list[str]
    open: list[str] = field(default_factory=list)

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
        # Ray Tune has not copied the file to the storage yet, where `trial.get_error` would look for it.
        outcome, reason = explain(Path(trial.error_file or "").read_text())
        self._close(trial, Outcome(outcome, last.get("epoch", 0.0), last.get("objective"), reason))

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Close the MLflow runs of trials that have ended, once their workers are gone."""
        self.open = [name for name in self.open if not close_run(RunFolder(f"{self.sweep}/{name}"))]

    def _close(self, trial: TuneTrial, outcome: Outcome) -> None:
        at = f" at epoch {outcome.epoch:g}" if outcome.outcome == STOPPED else ""
        print(f"{trial}: {outcome.outcome}{at}{': ' if outcome.reason else ''}{outcome.reason}", flush=True)
        folder = RunFolder(f"{self.sweep}/{trial}")
        before = read_outcome(folder)
        # Of a trial that had ended when the driver was killed, Ray Tune hears once more in the sweep that continues.
        if before is None or not before.final:
            write_outcome(folder, outcome)
        self.open.append(str(trial))


def close_run(trial: RunFolder) -> bool:
    """Mark a trial's MLflow run as ended, if it has one, and say there how; a trial without an outcome can go on.

    Returns:
        False, and nothing is done, while a worker still writes to the run.
    """
    if not trial.has("tracking.json"):
        return True
    handle = RunHandle(**trial.read_json("tracking.json"))
    if is_written(handle):
        return False
    outcome = read_outcome(trial) or Outcome(INTERRUPTED)
    tags = {"trial.outcome": outcome.outcome} | ({"trial.reason": outcome.reason} if outcome.reason else {})
    finish_run(handle, STATUS[outcome.outcome], tags, outcome.ended)
    return True


def close_runs(sweep: RunFolder) -> None:
    """Mark the MLflow runs of all trials as ended, once no process works on any of them; call it when none should."""
    open_runs = [RunFolder(f"{sweep.path}/{name}") for name in sweep.folders()]
    give_up = time.monotonic() + LONGEST_END
    while (open_runs := [trial for trial in open_runs if not close_run(trial)]) and time.monotonic() < give_up:
        time.sleep(0.5)
    for trial in open_runs:
        print(f"{trial.name}: its processes have not ended, so MLflow may show it as running", flush=True)


def explain(error: str) -> tuple[str, str]:
    """Return the outcome that a traceback means, and its error in one line."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["no reason is known"]
    # Advice may follow the line that names the error, as of one for want of memory.
    named = [line for line in lines if NAMED_ERROR.match(line)] or lines
    _, diverged, reason = named[-1].rpartition(f"{NonFiniteLossError.__name__}: ")
    return (DIVERGED if diverged else FAILED), reason[:LONGEST_REASON]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
