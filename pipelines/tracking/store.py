"""Where MLflow keeps runs: the store's address, its client, its experiments.

MLflow is imported where it is used, because that takes seconds which `lodisc --help` and most workers need not wait
for.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pipelines.run.config import TrackingConfig
from pipelines.run.files import local_path
from pipelines.tracking.journal import now_ms
from pipelines.tracking.new_store import make_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Before MLflow is imported anywhere: it would tell its makers of each run, and wait for them when a process ends.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

SQLITE = "sqlite:///"
# Makes MLflow's pages show runs and curves first, not prompts and traces.
TRAINING = {"mlflow.experimentKind": "custom_model_development"}


def local_database(storage: str) -> Path | None:
    """Return where a storage keeps its MLflow database, None where the storage is no folder of this machine."""
    folder = local_path(storage)
    return folder / "mlflow.db" if folder else None


def store_uri(config: TrackingConfig, storage: str) -> str:
    """Return the store's address in a form that holds in any working directory."""
    if config.uri is None:
        database = local_database(storage)
        if database is None:
            raise ValueError(
                f"tracking.uri: the storage {storage} cannot hold a database; name an MLflow server, as in "
                "--tracking.uri http://host:5000"
            )
        return f"{SQLITE}{database}"
    if config.uri.startswith(SQLITE):
        return f"{SQLITE}{Path(config.uri.removeprefix(SQLITE)).absolute()}"
    return config.uri


def open_client(uri: str) -> MlflowClient:
    """Return a client that gives up soon: our own retries run beside the training, MLflow's would take minutes."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def is_missing(uri: str) -> bool:
    """Whether a store is a database that is not there; MLflow would make an empty one if it were opened."""
    return uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file()


def find_run(config: TrackingConfig, storage: str, name: str, tag: str) -> tuple[str, str]:
    """Return the store's address and the id of the newest run that has the name and bears the tag.

    Raises:
        ValueError: there is no such store, it does not answer, or it has no such run.
    """
    from mlflow.exceptions import MlflowException

    uri = store_uri(config, storage)
    if is_missing(uri):
        field, place = ("storage", storage) if config.uri is None else ("tracking.uri", uri)
        raise ValueError(f"{field}: there is no MLflow store in {place}")
    try:
        client = open_client(uri)
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            raise ValueError(f"tracking.experiment: there is no experiment {config.experiment!r} in {uri}")
        runs = client.search_runs([experiment.experiment_id], f"tags.`{tag}` != ''", max_results=50_000)
    except MlflowException as error:
        reason = without_password(f"the MLflow store {uri} does not answer: {first_line(error)}")
        raise ValueError(f"tracking.uri: {reason}. Start the server or correct the address") from error
    names = [run.info.run_name for run in runs]
    if name not in names:
        others = f"there are {', '.join(sorted(set(names)))}" if names else "there is none yet"
        raise ValueError(f"no such run in {without_password(uri)}: {name}; {others}")
    return uri, runs[names.index(name)].info.run_id


@contextmanager
def store_warming(config: TrackingConfig, storage: str) -> Iterator[None]:
    """Import MLflow and make the store, where there is none, beside the block: both take seconds.

    What is wrong with the store is told by `create_run`.
    """

    def warm() -> None:
        with suppress(Exception):
            open_experiment(store_uri(config, storage), config.experiment)

    thread = threading.Thread(target=warm, name="store", daemon=True)
    thread.start()
    yield
    thread.join()


def open_experiment(uri: str, name: str) -> tuple[MlflowClient, str]:
    if not uri.startswith(SQLITE):
        return _find_experiment(uri, name, None)
    database = Path(uri.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that create the same database at once break it.
    with FileLock(f"{database}.lock"):
        if not database.exists():
            make_database(database)
        return _find_experiment(uri, name, (database.parent / "mlartifacts").as_uri())


def _find_experiment(uri: str, name: str, artifacts: str | None) -> tuple[MlflowClient, str]:
    from mlflow.exceptions import MlflowException

    client = open_client(uri)
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client, client.create_experiment(name, artifact_location=artifacts, tags=TRAINING)
        except MlflowException:
            # Another driver may have created it since; otherwise there is none and the error stands.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return client, found.experiment_id


def track(metrics: dict[str, float], step: int, run_id: str, uri: str) -> None:
    """Add points to a run that no worker writes to; a store that does not take them costs a warning."""
    from mlflow.entities import Metric

    now = now_ms()
    try:
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        open_client(uri).log_batch(run_id, metrics=points)
    except Exception as error:  # The scores are on the screen and on disk: no fault of a store may undo that.
        print(f"warning: the scores are not in MLflow ({uri}, run {run_id}): {type(error).__name__}: {error}")


def without_password(message: str) -> str:
    """Return a text without the user names and passwords that addresses in it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", message)


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
