"""Keep runs in MLflow: the driver opens and closes a run, its first worker writes the curves.

Every call names its store and run (`MlflowClient(uri)`, run id): MLflow's fluent functions leave settings in the
environment that worker processes inherit. MLflow is imported where it is used, because that takes seconds which
`lodisc --help` and most workers need not wait for.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock
from PIL import Image

from pipelines.journal import Entry, Journal, is_open, now_ms
from pipelines.new_store import make_database
from pipelines.run.config import TrackingConfig, flatten
from pipelines.run.files import local_path

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from torch import nn

# Before MLflow is imported anywhere: it would tell its makers of each run, and wait for them when a process ends.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

SQLITE = "sqlite:///"
LONGEST_PARAM = 6000  # characters, MLflow's limit
PARAMS_PER_REQUEST = 100  # MLflow's limit
QUICK_RETRIES = (0.5, 1.0, 2.0)  # seconds before each
SLOW_RETRY = 10.0  # seconds between attempts once the store is known to be down
FIRST_SAMPLE = 5.0  # seconds until the load is first sampled: before, all that starts a run takes the processor
CLOSE_SECONDS = 20.0  # the longest that the end of a run waits for its store
# Makes MLflow's pages show runs and curves first, not prompts and traces.
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
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
        client, experiment_id = _open_experiment(uri, config.experiment)
        run = client.create_run(experiment_id, run_name=name, tags=all_tags)
        _log_params(client, run.info.run_id, params)
        client.log_text(run.info.run_id, yaml.safe_dump(dict(params), sort_keys=False), "config.yaml")
    except MlflowException as error:
        reason = without_password(f"the MLflow store {uri} refused the run: {_first_line(error)}")
        raise ValueError(
            f"tracking.uri: {reason}. Start the server, correct the address, or leave tracking.uri out to keep the run "
            "in its storage folder"
        ) from error
    buffer = _run_folder(storage, name, run.info.run_id) / "tracking" / "buffer.jsonl"
    return RunHandle(uri, run.info.run_id, str(buffer), time.time(), local_path(storage) is None)


@contextmanager
def store_warming(config: TrackingConfig, storage: str) -> Iterator[None]:
    """Import MLflow and make the store, where there is none, beside the block: both take seconds.

    What is wrong with the store is told by `create_run`.
    """

    def warm() -> None:
        with suppress(Exception):
            _open_experiment(store_uri(config, storage), config.experiment)

    thread = threading.Thread(target=warm, name="store", daemon=True)
    thread.start()
    yield
    thread.join()


def resume_run(handle: RunHandle) -> RunHandle:
    """Mark the run as running again, after sending what an earlier process could not send."""
    _tell(handle, {"status": "RUNNING", "time": now_ms()})
    return handle


def finish_run(handle: RunHandle, status: str, tags: Mapping[str, str] | None = None, ended: int | None = None) -> None:
    """Mark the run as ended, after sending what its workers could not send.

    Args:
        handle: the run.
        status: "FINISHED", "FAILED" or "KILLED".
        tags: to set.
        ended: when it ended, milliseconds since 1970; None is now.
    """
    _tell(handle, {"tags": dict(tags or {})}, {"status": status, "time": ended or now_ms()})


def is_written(handle: RunHandle) -> bool:
    """Whether a worker of this machine still writes to the run."""
    return is_open(Path(handle.buffer_path))


def log_files(handle: RunHandle, files: Mapping[str, bytes]) -> None:
    """Upload files to a run that no worker writes to, by names such as "report/best.yaml"."""
    folder = Path(handle.buffer_path).parent / "files"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    _tell(handle, *({"artifact": name} for name in files))


def replay_buffer(handle: RunHandle) -> bool:
    """Send what is left of a run in its buffer.

    Returns:
        Whether the store has it all now; if not, that is said on the terminal.
    """
    return _tell(handle)


def log_encoder(handle: RunHandle, encoder: nn.Module, example: np.ndarray, step: int = 0) -> None:
    """Keep an encoder as the run's model `encoder`, which can be registered, served and loaded without this package.

    The model is an exported graph (pt2), in evaluation mode on the CPU, for any batch size.

    Args:
        handle: the run.
        encoder: normalised images (B, 3, H, W) float32 -> features (B, D) float32.
        example: a batch of at least two images, or the batch size would be fixed to one.
        step: finished steps of training.
    """
    assert len(example) >= 2, "a batch of one fixes the batch size of the exported graph"
    folder = Path(handle.buffer_path).parent / "files" / "encoder"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _save_model(encoder, example, folder, handle.run_id)
    except Exception as error:  # torch.export can fail in many ways, none of which takes the checkpoint away
        _say(f"the encoder cannot be exported as an MLflow model ({_first_line(error)}); the checkpoint holds it")
        return
    _tell(handle, {"model": "encoder", "step": step})


class Tracker:
    """Writes one run's metrics and files to its store, from one worker and without ever stopping it.

    A call returns once its data is on the local disk; a thread sends it. Where the store fails, that is said once, what
    is unsent waits in the buffer and is sent, in order, when the store answers again. The load on CPU, memory, disk,
    network and, through nvidia-ml-py, GPUs is sampled too (every `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` seconds, 10
    by default); the step of a sample is the run's age in seconds.

    Args:
        handle: the run.
        unsent: points that another tracker of the run had not sent; see `unsent`.
    """

    def __init__(self, handle: RunHandle, unsent: Sequence[Entry] = ()) -> None:
        self._handle = handle
        self._journal = _open_journal(handle)
        self._unwritten: list[Entry] = []
        self._writing = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._sender = threading.Thread(target=self._send, name="tracking", daemon=True)
        self._sampler = threading.Thread(target=self._sample, name="system-metrics", daemon=True)
        self._append(*unsent)
        self._sender.start()
        self._sampler.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to curves. A metric's steps must increase; a step that the store has already is left out."""
        values = {name: float(value) for name, value in metrics.items()}
        self._append({"metrics": values, "step": step, "time": now_ms()})

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Upload a file to a folder of the run; the file may be changed or removed right after."""
        name = f"{folder}/{Path(path).name}".lstrip("/")
        self._append_file(name, Path(path).read_bytes())

    def log_figure(self, figure: Image.Image | Figure, name: str) -> None:
        """Upload a picture under a name such as "pivots/step-00000120.png"."""
        encoded = BytesIO()
        if isinstance(figure, Image.Image):
            figure.save(encoded, format="PNG")
        else:
            figure.savefig(encoded, format="png")
        self._append_file(name, encoded.getvalue())

    def unsent(self) -> list[Entry]:
        """Return the points that would be lost with this machine, as they wait for the store on no disk but its own."""
        if not self._handle.buffer_is_local:
            return []
        with self._writing:
            return self._journal.unsent_points() + [entry for entry in self._unwritten if "metrics" in entry]

    def close(self) -> None:
        """Send the rest, for at most 20 seconds; say where the buffer lies if the store does not take it."""
        if self._closing.is_set():
            return
        self._append()
        self._closing.set()
        self._wake.set()
        self._sampler.join(CLOSE_SECONDS)
        self._sender.join(CLOSE_SECONDS)
        if self._journal.has_unsent():
            _say_kept(self._handle)
        if self._unwritten:
            _say(f"{len(self._unwritten)} entries are lost, as {self._handle.buffer_path} could not be written")
        if not self._sender.is_alive():
            self._journal.close()

    def _append_file(self, name: str, content: bytes) -> None:
        file = self._journal.files / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        except OSError as error:
            _say(f"{file} cannot be written ({error}); the run lacks it")
        else:
            self._append({"artifact": name})

    def _append(self, *entries: Entry) -> None:
        """Write entries to the journal, behind those that it did not take before."""
        with self._writing:
            waited = bool(self._unwritten)
            self._unwritten += entries
            try:
                while self._unwritten:
                    self._journal.append(self._unwritten[0])
                    self._unwritten.pop(0)
            except OSError as error:
                if not waited:
                    path = self._handle.buffer_path
                    _say(f"{path} cannot be written ({error}); training goes on, what it tells waits in memory")
        self._wake.set()

    def _send(self) -> None:
        """Send whenever there is something, with pauses after failures."""
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            failures = 0
            while not self._attempt(failures) and not self._closing.is_set():
                self._closing.wait(QUICK_RETRIES[failures] if failures < len(QUICK_RETRIES) else SLOW_RETRY)
                failures += 1
        if self._journal.has_unsent():
            self._attempt(0)

    def _attempt(self, failures: int) -> bool:
        if not self._journal.has_unsent():
            return True  # MLflow, which takes seconds, is imported for what there is to send: after the first step
        try:
            count = self._journal.deliver()
        except Exception as error:
            if failures == len(QUICK_RETRIES):
                _say(
                    f"{self._handle.uri} does not take the run's data ({_first_line(error)}). Training goes "
                    f"on; the data waits in {self._handle.buffer_path} and is sent when the store answers"
                )
            return False
        if failures > len(QUICK_RETRIES):
            _say(f"{self._handle.uri} answers again; {count} entries sent from the buffer")
        return True

    def _sample(self) -> None:
        if self._closing.wait(FIRST_SAMPLE):
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger(SystemMetricsMonitor.__module__).setLevel(logging.WARNING)
        # Only its gauges are used: its own loop ends for good at the first failure of the store.
        monitor = SystemMetricsMonitor(self._handle.run_id, tracking_uri=self._handle.uri)
        monitor.collect_metrics()
        while not self._closing.wait(monitor.sampling_interval):
            monitor.collect_metrics()
            sample = {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            for gauge in monitor.monitors:
                gauge.clear_metrics()
            self.log_metrics(sample, round(time.time() - self._handle.created))


def local_database(storage: str) -> Path | None:
    """Return where a storage keeps its MLflow database, None where the storage is no folder of this machine."""
    folder = local_path(storage)
    return folder / "mlflow.db" if folder else None


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
        reason = without_password(f"the MLflow store {uri} does not answer: {_first_line(error)}")
        raise ValueError(f"tracking.uri: {reason}. Start the server or correct the address") from error
    names = [run.info.run_name for run in runs]
    if name not in names:
        others = f"there are {', '.join(sorted(set(names)))}" if names else "there is none yet"
        raise ValueError(f"no such run in {without_password(uri)}: {name}; {others}")
    return uri, runs[names.index(name)].info.run_id


def _tell(handle: RunHandle, *entries: Entry) -> bool:
    """Send entries behind whatever the buffer holds; what fails stays in the buffer and is said, never raised."""
    try:
        journal = _open_journal(handle)
        for entry in entries:
            journal.append(entry)
    except OSError as error:
        _say(f"{handle.buffer_path} cannot be written ({error}); the run's state in MLflow is out of date")
        return False
    try:
        for pause in (*QUICK_RETRIES, 0.0):
            try:
                journal.deliver()
                return True
            except Exception as error:
                failure = error
                time.sleep(pause)
        _say_kept(handle, failure)
        return False
    finally:
        journal.close()


def _replay_leftovers(storage: str) -> None:
    """Send what runs of this storage that no process works on still keep from when their store was down."""
    folder = local_path(storage)
    for record in sorted(folder.glob("*/tracking.json")) if folder else ():
        handle = RunHandle(**json.loads(record.read_text()))
        buffer = Path(handle.buffer_path)
        if buffer.exists() and buffer.stat().st_size > 0 and not is_written(handle):
            replay_buffer(handle)


def _open_journal(handle: RunHandle) -> Journal:
    return Journal(Path(handle.buffer_path), partial(open_client, handle.uri), handle.run_id)


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


def _open_experiment(uri: str, name: str) -> tuple[MlflowClient, str]:
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


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in flatten(params).items()]
    for start in range(0, len(flat), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=flat[start : start + PARAMS_PER_REQUEST], synchronous=True)


def _save_model(encoder: nn.Module, example: np.ndarray, folder: Path, run_id: str) -> None:
    import copy

    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    encoder = copy.deepcopy(encoder).cpu().eval()
    with torch.inference_mode():
        dim = encoder(torch.from_numpy(example)).shape[1]
    images = TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:]), name=None)
    features = TensorSpec(np.dtype(np.float32), (-1, dim), name=None)
    mlflow.pytorch.save_model(
        encoder,
        str(folder),
        mlflow_model=Model(artifact_path=folder.name, run_id=run_id),
        signature=ModelSignature(inputs=Schema([images]), outputs=Schema([features])),
        input_example=example,
        pip_requirements=[f"mlflow=={version('mlflow')}", f"torch=={version('torch')}", f"numpy=={version('numpy')}"],
        serialization_format="pt2",
    )


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


def _say_kept(handle: RunHandle, error: Exception | None = None) -> None:
    reason = f" ({_first_line(error)})" if error else ""
    _say(
        f"{handle.uri} did not take the rest of the run's data{reason}; it waits in {handle.buffer_path} and "
        "is sent when this run is resumed or another one starts in the same storage"
    )


def _say(message: str) -> None:
    print(f"tracking: {without_password(message)}", file=sys.stderr, flush=True)


def without_password(message: str) -> str:
    """Return a text without the user names and passwords that addresses in it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", message)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
