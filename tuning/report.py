"""What a sweep found, read from MLflow alone: the table of trials, the best config, and pictures."""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.evaluation.scores import Score
from pipelines.run.config import config_from, to_dict
from pipelines.run.folder import RunFolder
from pipelines.tracking.runs import RunHandle, log_files
from pipelines.tracking.store import find_run, open_client
from tuning import plots
from tuning.config import ReportConfig
from tuning.objective import find_objective
from tuning.space import Domain, parse_space
from tuning.trial import COMPLETED, DIVERGED, FAILED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SWEEP_TAG = "sweep.objective"
BASE = "base.yaml"
FOLDER = "report"  # of the sweep's folder and of its MLflow artifacts


@dataclass(frozen=True)
class Trial:
    """A trial as MLflow knows it.

    Attributes:
        name: of its run and its folder.
        run_id: its MLflow run.
        params: values of the searched fields, by dotted name.
        outcome: `completed`, `stopped early`, `diverged`, `failed`, `interrupted`, or `running`.
        scores: the objective by finished epochs.
        reason: of a failure.
    """

    name: str
    run_id: str
    params: dict[str, Any]
    outcome: str
    scores: dict[int, float]
    reason: str

    @property
    def epoch(self) -> int:
        return max(self.scores, default=0)

    @property
    def last(self) -> float | None:
        return self.scores[self.epoch] if self.scores else None


@dataclass(frozen=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        name: of the sweep.
        objective: what its trials are compared by.
        space: the searched fields.
        epochs: of a trial that goes to its end.
        base: the config that its trials share, as nested plain values.
        trials: in the order of their names.
    """

    name: str
    objective: Score
    space: dict[str, Domain]
    epochs: int
    base: dict[str, Any]
    trials: list[Trial]

    @property
    def best(self) -> Trial | None:
        """The best of the trials that went to the end; where none did, of all at the common epoch."""
        ended = [(trial, trial.last) for trial in self.trials if trial.outcome == COMPLETED and trial.last is not None]
        sign = 1 if self.objective.mode == "max" else -1
        best = max(ended or self.comparable(), key=lambda found: sign * found[1], default=None)
        return best[0] if best else None

    @property
    def common_epoch(self) -> int:
        """The last epoch at which every trial that did not fail was scored: only there can all be compared. 0: none."""
        scored = [set(trial.scores) - {0} for trial in self.trials if trial.outcome not in (DIVERGED, FAILED)]
        scored = [epochs for epochs in scored if epochs]
        return max(set.intersection(*scored), default=0) if scored else 0

    def comparable(self) -> list[tuple[Trial, float]]:
        """Return the trials with their scores at the common epoch."""
        epoch = self.common_epoch
        return [(trial, trial.scores[epoch]) for trial in self.trials if epoch in trial.scores] if epoch else []

    def best_config(self) -> dict[str, Any] | None:
        """Return the config of the best trial, ready to pretrain with; None where no trial has a score."""
        return to_dict(config_from(self.base, self.best.params, self.name)) if self.best else None


def report(config: ReportConfig) -> SweepReport:
    """Print the report of a sweep, finished or not, from the MLflow store alone, and write its pictures.

    Raises:
        ValueError: there is no such store, no sweep of that name in it, or no such objective.
    """
    uri, run_id = find_run(config.tracking, config.storage, config.sweep, SWEEP_TAG)
    found = read_sweep(uri, run_id, config.objective)
    print(table(found))
    if config.output is not None:
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in report_files(found).items():
            (folder / name).write_bytes(content)
        print(f"written to {folder}")
    return found


def read_sweep(uri: str, run_id: str, objective: str | None = None) -> SweepReport:
    """Read a sweep and its trials from MLflow, with their scores by its objective or by the one that is named.

    Raises:
        ValueError: trials cannot be compared by the objective.
    """
    client = open_client(uri)
    parent = client.get_run(run_id)
    sweep, base = _yaml(client, run_id, "config.yaml"), _yaml(client, run_id, BASE)
    space = parse_space(sweep["space"])
    goal = find_objective(objective or parent.data.tags[SWEEP_TAG], space, base["data"]["eval_images"] is not None)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=50_000
    )
    # The newest first. A sweep that was killed while it began a trial leaves a run without params, or begins it again.
    begun = {child.info.run_name: child for child in reversed(children) if space.keys() <= child.data.params.keys()}
    trials = [_trial(client, begun[name], list(space), goal) for name in sorted(begun)]
    return SweepReport(parent.info.run_name, goal, space, base["optim"]["epochs"], base, trials)


def _yaml(client: MlflowClient, run_id: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        text = Path(client.download_artifacts(run_id, name, folder)).read_text()
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def _trial(client: MlflowClient, run: Run, fields: list[str], objective: Score) -> Trial:
    run_id = run.info.run_id
    points = client.get_metric_history(run_id, objective.metric)
    epochs = client.get_metric_history(run_id, "epoch")
    steps_per_epoch = round(epochs[-1].step / epochs[-1].value) if epochs else 1
    return Trial(
        name=run.info.run_name,
        run_id=run_id,
        params={field: _value(run.data.params[field]) for field in fields},
        outcome=run.data.tags.get("trial.outcome", "running"),
        scores={round(point.step / steps_per_epoch): point.value for point in points},
        reason=run.data.tags.get("trial.reason", ""),
    )


def _value(text: str) -> Any:
    """Return the value that MLflow keeps as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def importance(found: SweepReport) -> dict[str, float]:
    """Return the share of each searched field in the variance of the scores at the common epoch, largest first.

    By fANOVA (Hutter et al. 2014) over a random forest of the trials, as Optuna computes it. Empty for less than four
    trials, from which no forest can be grown.
    """
    import optuna

    study = _study(found)
    if len(study.trials) < 4 or len({trial.value for trial in study.trials}) < 2:
        return {}
    return optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))


def _study(found: SweepReport) -> Any:
    """Return the trials, as they were at the common epoch, as an Optuna study."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if found.objective.mode == "max" else "minimize")
    distributions = {field: domain.for_optuna() for field, domain in found.space.items()}
    for trial, value in found.comparable():
        params = {field: plots.plain(trial.params[field]) for field in found.space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return study


def table(found: SweepReport) -> str:
    """Return the sweep as text: a line a trial, best first, then what was saved, the importances and the best."""
    fields = [field.split(".", 1)[-1] for field in found.space]
    epoch = found.common_epoch
    titles = ["trial", *fields, "epochs", f"at epoch {epoch}", "last", "outcome"]
    lines = [[str(row[title]) for title in titles] for row in _rows(found, fields, epoch)]
    widths = [max(len(line[i]) for line in [titles, *lines]) for i in range(len(titles))]
    text = ["  ".join(map(str.rjust, line, widths)) for line in [titles, *lines]]
    return "\n".join([f"{found.name}, by {found.objective.name}", *text, "", *_summary(found)])


def _rows(found: SweepReport, fields: list[str], epoch: int) -> list[dict[str, Any]]:
    sign = -1 if found.objective.mode == "max" else 1

    def order(trial: Trial) -> tuple[int, float]:
        return -trial.epoch, sign * trial.last if trial.last is not None else float("inf")

    return [
        {
            "trial": trial.name.removeprefix(f"{found.name}-"),
            **{title: _cell(trial.params[field]) for title, field in zip(fields, found.space, strict=True)},
            "epochs": trial.epoch,
            f"at epoch {epoch}": _cell(trial.scores.get(epoch)),
            "last": _cell(trial.last),
            "outcome": f"{trial.outcome}{': ' if trial.reason else ''}{trial.reason}",
        }
        for trial in sorted(found.trials, key=order)
    ]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _summary(found: SweepReport) -> list[str]:
    run, whole = sum(trial.epoch for trial in found.trials), len(found.trials) * found.epochs
    lines = [f"{run} of {whole} epochs were run ({100 * run / max(1, whole):.0f} %)"]
    shares = importance(found)
    if shares:
        shown = ", ".join(f"{field} {share:.2f}" for field, share in shares.items())
        lines.append(f"importance at epoch {found.common_epoch}, of {len(found.comparable())} trials: {shown}")
    if found.best is not None:
        chosen = ", ".join(f"{field} {_cell(value)}" for field, value in found.best.params.items())
        lines.append(f"best: {found.best.name}, {found.objective.name} {_cell(found.best.last)}: {chosen}")
    return lines


def report_files(found: SweepReport) -> dict[str, bytes]:
    """Return the report's files by name: the table as text and JSON, the best config, and pictures."""
    fields = list(found.space)
    rows = _rows(found, fields, found.common_epoch)
    columns = {title: [row[title] for row in rows] for title in (rows[0] if rows else {})}
    shares = importance(found)
    files = {
        "report.txt": f"{table(found)}\n".encode(),
        # In the form that MLflow shows as a table.
        "trials.json": json.dumps({"columns": list(columns), "data": [list(row.values()) for row in rows]}).encode(),
        "importance.json": json.dumps(shares, indent=2).encode(),
    }
    best = found.best_config()
    if best is not None:
        files["best.yaml"] = _best_yaml(found, best)
    for name, figure in _pictures(found, shares).items():
        stream = BytesIO()
        figure.savefig(stream, format="png", dpi=110)
        files[name] = stream.getvalue()
    return files


def _best_yaml(found: SweepReport, best: Mapping[str, Any]) -> bytes:
    assert found.best is not None
    head = f"# The best trial of the sweep {found.name}: {found.best.name}, "
    head += f"{found.objective.name} {_cell(found.best.last)} after {found.best.epoch} epochs.\n"
    return (head + yaml.safe_dump(dict(best), sort_keys=False)).encode()


def _pictures(found: SweepReport, shares: Mapping[str, float]) -> dict[str, Any]:
    compared = [(trial.params, value, trial.outcome == COMPLETED) for trial, value in found.comparable()]
    if not compared:
        return {}
    score = f"{found.objective.name} at epoch {found.common_epoch}"
    best_is_high = found.objective.mode == "max"
    pictures = {
        "parallel_coordinates.png": plots.parallel_coordinates(found.space, compared, score, best_is_high),
        "response.png": plots.response(found.space, compared, score, best_is_high),
    }
    if shares:
        pictures["importance.png"] = plots.importance_bars(shares, f"share of the variance of {score}")
    return pictures


def publish(found: SweepReport, sweep: RunHandle, folder: RunFolder) -> None:
    """Print the report, and keep it in the sweep's folder and in its MLflow run."""
    print(f"\n{table(found)}\n", flush=True)
    files = report_files(found)
    for name in ("report.txt", "best.yaml"):
        if name in files:
            folder.write(name, files[name].decode())
    log_files(sweep, {f"{FOLDER}/{name}": content for name, content in files.items()})
