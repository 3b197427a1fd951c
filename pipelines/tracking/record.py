"""What MLflow keeps of a run, read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.tracking.store import is_missing, open_client, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow samples of the machine; its steps are seconds.
SYSTEM = "system/"


@dataclass(frozen=True)
class Curve:
    """A metric over time.

    Attributes:
        epochs: of its points, ascending.
        values: as many.
    """

    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class RunRecord:
    """A run as MLflow knows it.

    Attributes:
        name: of the run.
        status: "FINISHED", "RUNNING", "FAILED" or "KILLED".
        started: milliseconds since 1970.
        ended: milliseconds since 1970; None while it runs.
        tags: that the product set, and MLflow's own.
        curves: by metric, without those of the machine.
    """

    name: str
    status: str
    started: int
    ended: int | None
    tags: Mapping[str, str]
    curves: Mapping[str, Curve]

    def last(self, prefix: str) -> dict[str, float]:
        """Return the last values of the metrics that begin with a prefix, by the rest of their names."""
        return {
            name.removeprefix(prefix): curve.values[-1]
            for name, curve in self.curves.items()
            if name.startswith(prefix) and curve.values
        }


def read_record(uri: str, run_id: str) -> RunRecord:
    """Read a run.

    Raises:
        ValueError: there is no such store, it does not answer, or it has no such run.
    """
    if is_missing(uri):
        raise ValueError(f"there is no MLflow store at {uri}")
    try:
        client = open_client(uri)
        run = client.get_run(run_id)
        names = [name for name in run.data.metrics if not name.startswith(SYSTEM)]
        curves = _read_curves(client, run_id, names)
    except Exception as error:  # whatever a store, its driver or the network raises
        raise ValueError(without_password(f"the MLflow store {uri} does not answer: {error}")) from error
    info = run.info
    return RunRecord(info.run_name, info.status, info.start_time, info.end_time, run.data.tags, curves)


def _read_curves(client: MlflowClient, run_id: str, names: Iterable[str]) -> dict[str, Curve]:
    histories = {name: client.get_metric_history(run_id, name) for name in names}
    clock = histories.pop("epoch", [])
    steps_per_epoch = max((point.step / point.value for point in clock[-1:] if point.value > 0), default=1.0)
    curves = {}
    for name, points in histories.items():
        # One point a step, the last that was written: an evaluation may have been done twice.
        by_step = {point.step: point.value for point in sorted(points, key=lambda point: (point.step, point.timestamp))}
        curves[name] = Curve([step / steps_per_epoch for step in by_step], list(by_step.values()))
    return curves
