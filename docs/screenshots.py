"""Take the pictures of MLflow's pages that the documentation shows, from runs that are there.

    python -m docs.screenshots --storage runs --runs fused random --out docs/images
    python -m docs.screenshots --storage runs --sweep grocery-asha --out docs/images

makes mlflow-compare.png, the curves of the runs side by side, and mlflow-pivots.png, the last pivots of the first run;
of a sweep sweep-runs.png, its run with the trials below it, sweep-curves.png, their curves, and sweep-parallel.png, its
trials in MLflow's parallel coordinates. Needs the `dev` extra, chromium and chromedriver.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlflow import MlflowClient

from pipelines.run.config import TrackingConfig
from pipelines.tracking.store import find_run, local_database
from tests.pipelines.mlflow_pages import Pages, missing_browser
from tests.pipelines.mlflow_server import Server
from tuning.report import SWEEP_TAG


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the documentation's pictures of MLflow.")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="folder that holds the runs")
    parser.add_argument("--experiment", default="lodisc")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", nargs="+", help="names of the runs")
    what.add_argument("--sweep", help="name of a sweep")
    parser.add_argument("--charts", default="^loss$|eval/(knn|retrieval)", help="metrics to show, a regular expression")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    if reason := missing_browser():
        parser.error(reason)
    arguments.out.mkdir(parents=True, exist_ok=True)
    storage = arguments.storage.absolute()
    if arguments.sweep:
        take_sweep(storage, arguments.experiment, arguments.sweep, arguments.charts, arguments.out)
    else:
        take(storage, arguments.experiment, arguments.runs, arguments.charts, arguments.out)


def take(storage: Path, experiment_name: str, names: list[str], charts: str, out: Path) -> None:
    """Write the pictures of the named runs to the folder `out`.

    Raises:
        ValueError: the experiment or a run is not there, or the first run has no pivots.
    """
    client, experiment_id = find_experiment(storage, experiment_name)
    found = client.search_runs([experiment_id])
    ids = {run.info.run_name: run.info.run_id for run in reversed(found)}
    if missing := set(names) - ids.keys():
        raise ValueError(f"no run {', '.join(sorted(missing))} in {storage}; there are {', '.join(ids)}")
    pivots = sorted(item.path for item in client.list_artifacts(ids[names[0]], "pivots"))
    if not pivots:
        raise ValueError(f"the run {names[0]} has no pictures of pivots")
    with Server(storage) as server, Pages(server.uri, experiment_id) as pages:
        pages.resize(1440, 1720)  # all charts, as the page scrolls inside the window
        pages.compare("loss", charts, [ids[name] for name in names])
        pages.save(out / "mlflow-compare.png")
        pages.resize(1440, 1100)
        pages.picture_size(ids[names[0]], pivots[-1])
        pages.hide("Path:")  # of this machine
        pages.save(out / "mlflow-pivots.png")


def take_sweep(storage: Path, experiment_name: str, name: str, charts: str, out: Path) -> None:
    """Write the pictures of a sweep to the folder `out`.

    Raises:
        ValueError: the experiment or the sweep is not there.
    """
    client, experiment_id = find_experiment(storage, experiment_name)
    _, sweep = find_run(TrackingConfig(experiment=experiment_name), str(storage), name, SWEEP_TAG)
    trials = [run.info.run_id for run in client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{sweep}'")]
    with Server(storage) as server, Pages(server.uri, experiment_id) as pages:
        pages.resize(1440, 840)
        pages.expand(sweep)
        pages.save(out / "sweep-runs.png")
        pages.resize(1440, 1720)
        pages.compare("eval/knn/fine", charts, trials)
        pages.save(out / "sweep-curves.png")
        pages.resize(1440, 780)
        pages.parallel_coordinates(trials)
        pages.save(out / "sweep-parallel.png")


def find_experiment(storage: Path, name: str) -> tuple[MlflowClient, str]:
    """Return a client of the storage's store, and the experiment's id.

    Raises:
        ValueError: there is no such experiment.
    """
    client = MlflowClient(f"sqlite:///{local_database(str(storage))}")
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise ValueError(f"no experiment {name!r} in {storage}")
    return client, experiment.experiment_id


if __name__ == "__main__":
    main()
