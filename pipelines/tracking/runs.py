"""The driver's side of a run in MLflow: it opens the run, closes it, and sends what workers could not.

Every call names its store and run (`MlflowClient(uri)`, run id): MLflow's fluent functions leave settings in the
environment that worker processes inherit.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from pipelines.run.config import TrackingConfig, flatten, to_dict
from pipelines.run.files import local_path
from pipelines.run.folder import NamedConfig, RunFolder
from pipelines.tracking.journal import Entry, Journal, is_open, now_ms
from pipelines.tracking.store import first_line, open_client, open_experiment, store_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_PARAM = 6000  # characters, MLflow's limit
PARAMS_PER_REQUEST = 100  # MLflow's limit
QUICK_RETRIES = (0.5, 1.0, 2.0)  # seconds before each
PACKAGES = ("lodisc", "ray", "torch", "timm", "mlflow")


@dataclass(frozen=True)
class RunHandle:
    """A run in an MLflow store, as driver and workers pass it on.

    Attributes:
        uri: the store.
        run_id: the run.
        buffer_path: local file that keeps what the store did not take yet.
        created: when the run was created, seconds since 1970.
        buffer_is_local: whether the buffer is lost with its machine, as the storage is no folder.
    """

    uri: str
    run_id: str
    buffer_path: str
    created: float
    buffer_is_local: bool = False


class TrackedConfig(NamedConfig, Protocol):
    """The config of a run that MLflow keeps."""

    @property
    def tracking(self) -> TrackingConfig: ...


def open_tracking(
    config: TrackedConfig, folder: RunFolder, fingerprints: dict[str, str], parent_run_id: str | None = None
) -> RunHandle:
    """Create the MLflow run, or reopen the one that the folder names."""
    if config.resume:
        return resume_run(RunHandle(**folder.read_json("tracking.json")))
    run = create_run(config.tracking, config.storage, folder.name, to_dict(config), fingerprints, parent_run_id)
    folder.write_json("tracking.json", asdict(run))
    folder.write_config(config)
    return run


def create_run(
    config: TrackingConfig,
    storage: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> RunHandle:
    """Create a run, and its store where there is none yet. Call it from the driver only.

    Args:
        config: the store.
        storage: folder or URI that holds the runs.
        name: of the run.
        params: nested config; logged flat by dotted name, and whole as config.yaml.
        tags: added to the tags that say which code, packages and machine made the run.
        parent_run_id: the run that this one is listed under.

    Raises:
        ValueError: the store does not answer or refuses the run.
    """
    from mlflow.exceptions import MlflowException

    _replay_leftovers(storage)
    uri = store_uri(config, storage)
    all_tags = _provenance() | dict(tags or {}) | {"mlflow.runName": name}
    if parent_run_id:
        all_tags["mlflow.parentRunId"] = parent_run_id
    try:
        client, experiment_id = open_experiment(uri, config.experiment)
        run = client.create_run(experiment_id, run_name=name, tags=all_tags)
        _log_params(client, run.info.run_id, params)
        client.log_text(run.info.run_id, yaml.safe_dump(dict(params), sort_keys=False), "config.yaml")
    except MlflowException as error:
        reason = without_password(f"the MLflow store {uri} refused the run: {first_line(error)}")
        raise ValueError(
            f"tracking.uri: {reason}. Start the server, correct the address, or leave tracking.uri out to keep the run "
            "in its storage folder"
        ) from error
    buffer = _run_folder(storage, name, run.info.run_id) / "tracking" / "buffer.jsonl"
    return RunHandle(uri, run.info.run_id, str(buffer), time.time(), local_path(storage) is None)


def resume_run(handle: RunHandle) -> RunHandle:
    """Mark the run as running again, after sending what an earlier process could not send."""
    tell(handle, {"status": "RUNNING", "time": now_ms()})
    return handle


def finish_run(handle: RunHandle, status: str, tags: Mapping[str, str] | None = None, ended: int | None = None) -> None:
    """Mark the run as ended, after sending what its workers could not send.

    Args:
        handle: the run.
        status: "FINISHED", "FAILED" or "KILLED".
        tags: to set.
        ended: when it ended, milliseconds since 1970; None is now.
    """
    tell(handle, {"tags": dict(tags or {})}, {"status": status, "time": ended or now_ms()})


def is_written(handle: RunHandle) -> bool:
    """Whether a worker of this machine still writes to the run."""
    return is_open(Path(handle.buffer_path))


def log_files(handle: RunHandle, files: Mapping[str, bytes]) -> None:
    """Upload files to a run that no worker writes to, by names such as "report/best.yaml"."""
    folder = Path(handle.buffer_path).parent / "files"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    tell(handle, *({"artifact": name} for name in files))


def replay_buffer(handle: RunHandle) -> bool:
    """Send what is left of a run in its buffer.

    Returns:
        Whether the store has it all now; if not, that is said on the terminal.
    """
    return tell(handle)


def tell(handle: RunHandle, *entries: Entry) -> bool:
    """Send entries behind whatever the buffer holds; what fails stays in the buffer and is said, never raised."""
    with ExitStack() as stack:
        try:
            journal = stack.enter_context(closing(open_journal(handle)))
            for entry in entries:
                journal.append(entry)
        except OSError as error:
            say(f"{handle.buffer_path} cannot be written ({error}); the run's state in MLflow is out of date")
            return False
        for pause in (*QUICK_RETRIES, 0.0):
            try:
                journal.deliver()
                return True
            except Exception as error:
                failure = error
                time.sleep(pause)
    say_kept(handle, failure)
    return False


def _replay_leftovers(storage: str) -> None:
    """Send what runs of this storage that no process works on still keep from when their store was down."""
    folder = local_path(storage)
    for record in sorted(folder.glob("*/tracking.json")) if folder else ():
        try:
            handle = RunHandle(**json.loads(record.read_text()))
        except (OSError, ValueError, TypeError) as error:  # A run's damage is no other run's.
            say(f"{record} cannot be read ({first_line(error)}); what that run has not sent stays where it is")
            continue
        buffer = Path(handle.buffer_path)
        if buffer.exists() and buffer.stat().st_size > 0 and not is_written(handle):
            replay_buffer(handle)


def open_journal(handle: RunHandle) -> Journal:
    return Journal(Path(handle.buffer_path), partial(open_client, handle.uri), handle.run_id)


def say_kept(handle: RunHandle, error: Exception | None = None) -> None:
    reason = f" ({first_line(error)})" if error else ""
    say(
        f"{handle.uri} did not take the rest of the run's data{reason}; it waits in {handle.buffer_path} and "
        "is sent when this run is resumed or another one starts in the same storage"
    )


def say(message: str) -> None:
    print(f"tracking: {without_password(message)}", file=sys.stderr, flush=True)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in flatten(params).items()]
    for start in range(0, len(flat), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=flat[start : start + PARAMS_PER_REQUEST], synchronous=True)


def _provenance() -> dict[str, str]:
    """Return tags that say which code, packages and machine make a run."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "lodisc",
        "python": platform.python_version(),
        "host": socket.gethostname(),
    }
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            tags[f"version.{package}"] = "not installed as a package"
    commit = _git("rev-parse", "HEAD")
    if commit:
        dirty = "+dirty" if _git("status", "--porcelain") else ""
        tags |= {"mlflow.source.git.commit": commit, "git.commit": f"{commit}{dirty}"}
    return tags


def _user() -> str:
    """Return the user's name, or the number where the machine knows but that, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return str(os.getuid())


def _git(*arguments: str) -> str:
    """Return what git says of the working directory, nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _run_folder(storage: str, name: str, run_id: str) -> Path:
    """Return where a run keeps its buffer: its own folder, or a temporary one where that is in an object store."""
    folder = local_path(storage)
    return folder / name if folder else Path(tempfile.gettempdir()) / "lodisc" / run_id
