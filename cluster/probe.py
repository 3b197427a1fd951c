"""What a node finds out about itself when it is asked."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from pipelines.data.sources import find_source
from pipelines.run.folder import RunFolder
from pipelines.tracking.store import is_missing, open_client

PACKAGES = ("lodisc", "ray", "torch", "torchvision", "timm", "mlflow", "pyarrow", "numpy")
MARK = "written by the driver"


@dataclass(frozen=True)
class Questions:
    """What a node is asked beside what it is.

    Attributes:
        storage: folder or URI of runs.
        folder: in it, where the driver has left a mark.
        uri: MLflow store.
        images: sources that the node should find.
    """

    storage: str
    folder: str
    uri: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """What a node found. Where something failed, the error in one line stands in place of None.

    Attributes:
        versions: of Python and packages.
        storage, tracking: None or an error.
        images: by source, None or an error.
        gpus: memory of each GPU that torch sees, in bytes.
        memory: of the machine, in bytes.
        shared_memory: free in /dev/shm, in bytes; None where there is none.
        token: whether Ray checks a token.
    """

    versions: dict[str, str]
    storage: str | None
    tracking: str | None
    images: dict[str, str | None]
    gpus: list[int]
    memory: int
    shared_memory: int | None
    token: bool


def probe(node: str, questions: Questions) -> Answers:
    """Answer on a node, whose name is that of the file that it writes to the storage."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    shared = psutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None
    return Answers(
        versions=versions(),
        storage=_tried(lambda: _use_storage(node, questions)),
        tracking=_tried(lambda: _ask_mlflow(questions.uri)),
        images={source: _tried(partial(find_source, source)) for source in questions.images},
        gpus=[torch.cuda.get_device_properties(number).total_memory for number in range(count)],
        memory=psutil.virtual_memory().total,
        shared_memory=shared,
        token=os.environ.get("RAY_AUTH_MODE") == "token",
    )


def clock(node: str) -> float:
    """Return what time it is on a node, in seconds since 1970."""
    return time.time()


def versions() -> dict[str, str]:
    """Return which Python this is, and which packages it has."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _use_storage(node: str, questions: Questions) -> None:
    folder = RunFolder(f"{questions.storage}/{questions.folder}")
    if not folder.has(MARK):
        raise ValueError("what another machine wrote there is not there")
    folder.write(node, node)


def _ask_mlflow(uri: str) -> None:
    if not is_missing(uri):  # A run makes a database where there is none.
        open_client(uri).search_experiments(max_results=1)


def _tried(action: Callable[[], Any]) -> str | None:
    try:
        action()
    except Exception as error:  # of any kind: it is what is asked for
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return None
