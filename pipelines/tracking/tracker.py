"""The first worker's side of a run in MLflow: curves, pictures, and the load on its machine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipelines.tracking.journal import Entry, now_ms
from pipelines.tracking.runs import QUICK_RETRIES, RunHandle, open_journal, say, say_kept
from pipelines.tracking.store import first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLOW_RETRY = 10.0  # seconds between attempts once the store is known to be down
FIRST_SAMPLE = 5.0  # seconds until the load is first sampled: before, all that starts a run takes the processor
CLOSE_SECONDS = 20.0  # the longest that the end of a run waits for its store


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
        self._journal = open_journal(handle)
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
            say_kept(self._handle)
        if self._unwritten:
            say(f"{len(self._unwritten)} entries are lost, as {self._handle.buffer_path} could not be written")
        if not self._sender.is_alive():
            self._journal.close()

    def _append_file(self, name: str, content: bytes) -> None:
        file = self._journal.files / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        except OSError as error:
            say(f"{file} cannot be written ({error}); the run lacks it")
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
                    say(f"{path} cannot be written ({error}); training goes on, what it tells waits in memory")
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
                say(
                    f"{self._handle.uri} does not take the run's data ({first_line(error)}). Training goes "
                    f"on; the data waits in {self._handle.buffer_path} and is sent when the store answers"
                )
            return False
        if failures > len(QUICK_RETRIES):
            say(f"{self._handle.uri} answers again; {count} entries sent from the buffer")
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
