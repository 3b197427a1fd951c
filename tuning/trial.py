"""One trial: a pretraining run with the values that the sweep chose, which tells Ray Tune how it does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import ray.train
import ray.tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.evaluation.scores import Score
from pipelines.run.causes import NonFiniteLossError
from pipelines.run.config import PretrainConfig, config_from, to_dict
from pipelines.run.folder import FINISHED, RunFolder
from pipelines.tracking.journal import now_ms

if TYPE_CHECKING:
    from pipelines.data.run_images import RunImages

# Written beside a trial's checkpoints when it ends, so that a resumed sweep never takes it up again.
OUTCOME = "outcome.json"
COMPLETED, STOPPED, DIVERGED, FAILED = "completed", "stopped early", "diverged", "failed"
INTERRUPTED = "interrupted"  # said in MLflow only: the trial can go on


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        outcome: COMPLETED, STOPPED, DIVERGED or FAILED.
        epoch: finished epochs at its last score, 0 without one.
        objective: that score.
        reason: of a failure, in one line.
        ended: when, milliseconds since 1970.
    """

    outcome: str
    epoch: float = 0.0
    objective: float | None = None
    reason: str = ""
    ended: int = field(default_factory=now_ms)

    @property
    def final(self) -> bool:
        """Whether running it again would tell nothing new."""
        return self.outcome != FAILED


def trial_name(sweep: str, trial: TuneTrial) -> str:
    """Return a trial's name: the sweep's, its number and a digest of its values.

    By the digest a trial that Ray Tune forgot when its driver was killed is never mistaken for another one that has
    taken its number since.
    """
    number = int(trial.experiment_tag.split("_")[0])
    digest = hashlib.sha256(json.dumps(trial.config, sort_keys=True, default=str).encode()).hexdigest()
    return f"{sweep}-{number:03d}-{digest[:4]}"


def read_outcome(folder: RunFolder) -> Outcome | None:
    return Outcome(**folder.read_json(OUTCOME)) if folder.has(OUTCOME) else None


def write_outcome(folder: RunFolder, outcome: Outcome) -> None:
    folder.write_json(OUTCOME, asdict(outcome))


def run_trial(
    params: dict[str, Any], base: PretrainConfig, objective: Score, parent_run_id: str, images: RunImages
) -> None:
    """Pretrain with `params` instead of the base's values, or go on from where an earlier attempt ended.

    Ray Tune calls it in a process of the trial's own.

    Args:
        params: values by dotted name.
        base: what all trials share. Its storage is the sweep's folder.
        objective: reported at each evaluation.
        parent_run_id: the sweep's MLflow run.
        images: of all trials.

    Raises:
        NonFiniteLossError: training diverged, now or in an earlier attempt.
    """
    # Here, as the process that coordinates the run's workers imports this module too, for `ReportScores` alone.
    from pipelines.training.pretrain import pretrain

    name = ray.tune.get_context().get_trial_name()
    folder = RunFolder(f"{base.storage}/{name}")
    before = read_outcome(folder)
    if before is not None and before.outcome == DIVERGED:
        raise NonFiniteLossError(before.reason)
    if before is not None and before.final:
        ray.tune.report({"epoch": before.epoch, "objective": before.objective})
        return
    folder.remove(OUTCOME)  # of a try that failed: this one may be interrupted
    if folder.has(FINISHED):
        metrics = folder.read_json(FINISHED)["metrics"]
    else:
        resume = folder.has("config.yaml")
        config = config_from(to_dict(base), {**params, "name": name, "resume": resume}, name)
        report = ReportScores(objective.metric, base.optim.epochs)
        metrics = pretrain(config, images=images, parent_run_id=parent_run_id, callbacks=[report]).metrics
    ray.tune.report({"epoch": metrics["epoch"], "objective": metrics[objective.metric]})


class ReportScores(TuneReportCallback):
    """Passes every score but the last on to Ray Tune: that one is told once the run has closed its books.

    A scheduler may end a trial's processes as soon as it hears a score.
    """

    def __init__(self, metric: str, epochs: int) -> None:
        super().__init__()
        self.metric, self.epochs = metric, epochs

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: ray.train.Checkpoint | None
    ) -> None:
        """Called in the controller of the run, with what each worker reported."""
        first = metrics[0]
        if self.metric in first and first["epoch"] < self.epochs:
            super().after_report(run_context, [{"epoch": first["epoch"], "objective": first[self.metric]}], None)
