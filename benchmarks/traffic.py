"""What goes through this machine's object store and loopback interface while something runs on Ray."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

SECONDS_BETWEEN_SAMPLES = 0.1


@dataclass(frozen=True)
class Sample:
    """Counters at a moment: seconds since 1970, and bytes."""

    time: float
    stored: int
    created: int
    sent: int


class Traffic:
    """Reads the counters ten times a second, inside a `with` block. Ray must be running, on this machine alone."""

    def __enter__(self) -> Traffic:
        self.samples: list[Sample] = []
        self._state = get_state_from_address(ray.get_runtime_context().gcs_address)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        self.samples.append(self._sample())
        while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        stats = get_memory_info_reply(self._state).store_stats
        sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        return Sample(time.time(), stats.object_store_bytes_used, stats.cumulative_created_bytes, sent)

    @property
    def peak(self) -> int:
        """The most bytes that the object store held."""
        return max(sample.stored for sample in self.samples)

    def between(self, start: float, end: float) -> tuple[int, int]:
        """Return the bytes put into the object store, and those sent over loopback, between two times."""
        inside = [sample for sample in self.samples if start <= sample.time <= end]
        assert len(inside) > 1, "too short to measure"
        return inside[-1].created - inside[0].created, inside[-1].sent - inside[0].sent
