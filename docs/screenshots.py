"""Take the pictures of MLflow's pages that the documentation shows, from runs that are there.

    python -m docs.screenshots --storage runs --runs fused random --out docs/images

makes mlflow-compare.png, the curves of the runs side by side, and mlflow-pivots.png, the last pivots of the first run.
Needs the `dev` extra, chromium and chromedriver.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlflow import MlflowClient

from pipelines.tracking import local_database
from tests.pipelines.mlflow_pages import Pages, missing_browser
from tests.pipelines.mlflow_server import Server


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the documentation's pictures of MLflow.")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="folder that holds the runs")
    parser.add_argument("--experiment", default="lodisc")
    parser.add_argument("--runs", nargs="+", required=True, help="names of the runs")
    parser.add_argument("--charts", default="^loss$|eval/(knn|retrieval)", help="metrics to show, a regular expression")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    if reason := missing_browser():
        parser.error(reason)
    take(arguments.storage.absolute(), arguments.experiment, arguments.runs, arguments.charts, arguments.out)


def take(storage: Path, experiment_name: str, names: list[str], charts: str, out: Path) -> None:
    """Write the pictures of the named runs to the folder `out`.

    Raises:
        ValueError: the experiment or a run is not there, or the first run has no pivots.
    """
    client = MlflowClient(f"sqlite:///{local_database(str(storage))}")
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        raise ValueError(f"no experiment {experiment_name!r} in {storage}")
    found = client.search_runs([experiment.experiment_id])
    ids = {run.info.run_name: run.info.run_id for run in reversed(found)}
    if missing := set(names) - ids.keys():
        raise ValueError(f"no run {', '.join(sorted(missing))} in {storage}; there are {', '.join(ids)}")
    pivots = sorted(item.path for item in client.list_artifacts(ids[names[0]], "pivots"))
    if not pivots:
        raise ValueError(f"the run {names[0]} has no pictures of pivots")
    out.mkdir(parents=True, exist_ok=True)
    with Server(storage) as server, Pages(server.uri, experiment.experiment_id) as pages:
        pages.resize(1440, 1720)  # all charts, as the page scrolls inside the window
        pages.compare("loss", charts, [ids[name] for name in names])
        pages.save(out / "mlflow-compare.png")
        pages.resize(1440, 1100)
        pages.picture_size(ids[names[0]], pivots[-1])
        pages.hide("Path:")  # of this machine
        pages.save(out / "mlflow-pivots.png")


if __name__ == "__main__":
    main()
