"""Open the MLflow pages of a run storage."""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

from pipelines.tracking.options import UIConfig
from pipelines.tracking.store import local_database


def ui(config: UIConfig) -> NoReturn:
    """Serve the pages until interrupted; this process becomes the server.

    Raises:
        ValueError: the storage has no store, or the address cannot be used.
    """
    database = local_database(config.storage)
    if database is None or not database.is_file():
        raise ValueError(
            f"storage: there is no MLflow store in {config.storage}. `lodisc pretrain` and `lodisc demo` make one; "
            "runs that were tracked on a server (tracking.uri) are seen at its address"
        )
    _require_free(config.host, config.port)
    print(f"MLflow: http://{config.host}:{config.port}  (Ctrl-C ends it)", flush=True)
    # One worker and no job queue: 0.5 GB of memory instead of 2.
    settings = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    options = {
        "--backend-store-uri": f"sqlite:///{database}",
        "--artifacts-destination": str(database.parent / "mlartifacts"),
        "--host": config.host,
        "--port": str(config.port),
        "--workers": "1",
    }
    command = [sys.executable, "-m", "mlflow", "server", *(word for option in options.items() for word in option)]
    os.execve(sys.executable, command, settings)


def _require_free(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"port: {host}:{port} cannot be used ({error.strerror}); choose another --port") from error
