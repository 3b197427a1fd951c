"""A real MLflow server on a run storage, which a test starts, kills and starts again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.environment import environment_outside

START_SECONDS = 120.0
SERVE = "import sys; from pipelines.tracking.ui import UIConfig, ui; ui(UIConfig(**eval(sys.argv[1])))"


class Server:
    """The `lodisc ui` of a storage, answering while the context is open."""

    def __init__(self, storage: Path, port: int | None = None, host: str = "127.0.0.1") -> None:
        self.storage, self.port, self.host = storage, port or free_port(), host
        self.uri = f"http://{host}:{self.port}"

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        options = {"storage": str(self.storage), "port": self.port, "host": self.host}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, repr(options)],
            env=environment_outside(),
            cwd=self.storage,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"the server ended: {self._read_log()}"
            assert time.monotonic() < deadline, f"no answer from {self.uri}"
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the server and its workers outright."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
