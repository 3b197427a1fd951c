"""What a run has to tell MLflow, kept on disk until MLflow has it.

Everything is written to a file first and sent from there, so a store that is slow, down or killed costs neither
training time nor points, and a killed process leaves behind what it had not sent.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from mlflow import MlflowClient

Entry = dict[str, Any]
METRICS_PER_REQUEST = 1000  # the most that MLflow takes


def now_ms() -> int:
    """Return the time as MLflow stores it, milliseconds since 1970."""
    return round(time.time() * 1000)


def is_open(path: Path) -> bool:
    """Whether some process of this machine is sending the journal at `path`."""
    try:
        with _sender(path):
            return False
    except Timeout:
        return True


class Journal:
    """The unsent entries of one run: lines of JSON, with the files to upload beside them.

    Entries are {"metrics": {name: value}, "step", "time"}, {"artifact": path below `files`}, {"tags": {name: value}},
    {"model": folder below `files`, "step"} and {"status": name, "time"}. They are sent in the order of writing, and a
    metric's point only where its step is beyond the last one that MLflow has: sending twice, or a resumed run passing
    the same steps again, adds nothing.

    Args:
        path: the file; its folder is made.
        client: makes the one of the store that holds the run, when something is first delivered: MLflow takes seconds
            to import.
        run_id: the run.
    """

    def __init__(self, path: Path, client: Callable[[], MlflowClient], run_id: str) -> None:
        self.path, self.files = path, path.parent / "files"
        self._make_client, self._run_id = client, run_id
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._appending = threading.Lock()
        self._sender = _sender(path)
        self._sent_bytes = 0
        self._last_steps: dict[str, int] | None = None
        if not _ends_line(path):
            self._file.write(b"\n")

    @cached_property
    def _client(self) -> MlflowClient:
        return self._make_client()

    def append(self, entry: Entry) -> None:
        """Add an entry, on disk before this returns.

        Raises:
            OSError: the disk refuses it.
        """
        line = json.dumps(entry).encode() + b"\n"
        with self._appending:
            # A disk that is nearly full takes a part of it, and says nothing.
            written = self._file.write(line)
            if written != len(line):
                os.truncate(self.path, self.path.stat().st_size - (written or 0))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def has_unsent(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > self._sent_bytes

    def unsent_points(self) -> list[Entry]:
        """Return the unsent entries that hold metrics."""
        with self._appending:
            return [entry for entry, _ in self._unsent() if "metrics" in entry]

    def deliver(self) -> int:
        """Send all entries, and empty the file.

        Returns:
            The number of entries sent.

        Raises:
            Exception: the store's own error. What was not sent stays, and the next call takes it up.
            filelock.Timeout: another process is sending this journal.
        """
        if not self._sender.is_locked:
            self._sender.acquire()
        try:
            if self._last_steps is None:
                self._last_steps = _last_steps(self._client, self._run_id)
            count = 0
            for entries, end in self._requests():
                self._send(entries)
                self._sent_bytes = end
                count += len(entries)
        except Exception:
            # The failed request may have arrived all the same.
            self._last_steps = None
            raise
        with self._appending:
            if self._sent_bytes == self.path.stat().st_size:
                os.truncate(self.path, 0)
                self._sent_bytes = 0
        return count

    def close(self) -> None:
        self._file.close()
        self._sender.release()

    def _requests(self) -> Iterator[tuple[list[Entry], int]]:
        """Yield groups of entries that one request can carry, each with the file offset behind it."""
        group: list[Entry] = []
        size, end = 0, self._sent_bytes
        for entry, entry_end in self._unsent():
            points = len(entry.get("metrics", ()))
            if group and (not points or size + points > METRICS_PER_REQUEST):
                yield group, end
                group, size = [], 0
            group.append(entry)
            size, end = size + points, entry_end
            if not points:
                yield group, end
                group = []
        if group or end > self._sent_bytes:
            yield group, end

    def _unsent(self) -> Iterator[tuple[Entry, int]]:
        with self.path.open("rb") as file:
            file.seek(self._sent_bytes)
            for line in file:
                if line.endswith(b"\n"):
                    yield _parsed(line), file.tell()

    def _send(self, entries: list[Entry]) -> None:
        for entry in entries:
            if "artifact" in entry:
                self._send_artifact(entry["artifact"])
            elif "model" in entry:
                self._send_model(entry["model"], entry["step"])
            elif "tags" in entry:
                for name, value in entry["tags"].items():
                    self._client.set_tag(self._run_id, name, value)
            elif "status" in entry:
                self._send_status(entry["status"], entry["time"])
        self._send_metrics([entry for entry in entries if "metrics" in entry])

    def _send_metrics(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        assert self._last_steps is not None
        points = []
        for entry in entries:
            for name, value in entry["metrics"].items():
                if entry["step"] > self._last_steps.get(name, -1):
                    points.append(Metric(name, value, entry["time"], entry["step"]))
                    self._last_steps[name] = entry["step"]
        if points:
            self._client.log_batch(self._run_id, metrics=points, synchronous=True)

    def _send_artifact(self, name: str) -> None:
        file = self.files / name
        if file.exists():
            self._client.log_artifact(self._run_id, str(file), str(Path(name).parent) if "/" in name else None)
            file.unlink()

    def _send_status(self, status: str, time_ms: int) -> None:
        if status == "RUNNING":
            self._client.update_run(self._run_id, status)
        else:
            self._client.set_terminated(self._run_id, status, time_ms)

    def _send_model(self, name: str, step: int) -> None:
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        folder = self.files / name
        if not folder.exists():
            return
        run = self._client.get_run(self._run_id)
        logged = self._client.create_logged_model(run.info.experiment_id, name, self._run_id, params=run.data.params)
        about = Model.load(folder)
        about.model_id, about.run_id = logged.model_id, self._run_id
        about.save(str(folder / "MLmodel"))
        self._client.log_model_artifacts(logged.model_id, str(folder))
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(self._run_id, [LoggedModelOutput(logged.model_id, step)])
        shutil.rmtree(folder)


def _last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    # The public `data.metrics` leaves the steps out, and whole histories would be read for one number each.
    return {metric.key: metric.step for metric in client.get_run(run_id).data._metric_objs}


def _ends_line(path: Path) -> bool:
    """Whether the file is empty or its last line is whole; a machine that lost power can leave half a line."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _parsed(line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _sender(path: Path) -> FileLock:
    """Return the lock that the one who sends the journal holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=0, thread_local=False)
