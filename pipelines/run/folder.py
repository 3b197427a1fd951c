"""The folder of a run: who may write to it, and what continues it."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from filelock import FileLock, Timeout
from pyarrow import fs

from pipelines.run.config import flatten, to_dict
from pipelines.run.files import local_path, require_writable

# Written at the very end of a run.
FINISHED = "result.json"
LEAVE = "leave"  # its workers look for it, and go
CHECKPOINT = "checkpoint.pt"  # in a folder of its own each, see `directory_name`
STEP = re.compile(r"step-(\d+)")
# A resumed run may move to other machines and be watched differently; anything else would make it another run.
FREE_ON_RESUME = ("compute.", "checkpoint.", "evaluation.", "tracking.", "storage", "resume", "profile")


class NamedConfig(Protocol):
    """The config, a dataclass, of anything that keeps a folder in a storage under its name."""

    @property
    def name(self) -> str | None: ...

    @property
    def storage(self) -> str: ...

    @property
    def resume(self) -> bool: ...


C = TypeVar("C", bound=NamedConfig)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, local or URI, holding config.yaml, tracking.json and the checkpoints."""

    path: str

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[1]

    @property
    def storage(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[0]

    def has(self, name: str) -> bool:
        filesystem, path = fs.FileSystem.from_uri(self.path)
        return filesystem.get_file_info(f"{path}/{name}").type == fs.FileType.File

    def read(self, name: str) -> str:
        filesystem, path = fs.FileSystem.from_uri(self.path)
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            return stream.read().decode()

    def write(self, name: str, content: str | bytes) -> None:
        filesystem, path = fs.FileSystem.from_uri(self.path)
        filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)

    def remove(self, name: str) -> None:
        """Remove a file, where there is one."""
        filesystem, path = fs.FileSystem.from_uri(self.path)
        if self.has(name):
            filesystem.delete_file(f"{path}/{name}")

    def remove_all(self) -> None:
        """Remove the folder and all that is in it."""
        filesystem, path = fs.FileSystem.from_uri(self.path)
        filesystem.delete_dir(path)

    def folders(self) -> list[str]:
        """Return the names of the folders in it."""
        filesystem, path = fs.FileSystem.from_uri(self.path)
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(item.base_name for item in found if item.type == fs.FileType.Directory)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2))

    def write_config(self, config: NamedConfig) -> None:
        """Keep the config beside the checkpoints, in the form that `--config` reads."""
        fresh = replace(config, resume=False)  # type: ignore[type-var]  # a protocol cannot ask for a dataclass
        self.write("config.yaml", yaml.safe_dump(to_dict(fresh), sort_keys=False))

    def finished_steps(self) -> int:
        """Return the step of the newest whole checkpoint, 0 where there is none.

        One that was cut off, as its worker was killed or the disk was full, is none: the end of the file is written
        last, and tells where all else is.
        """
        return next((step for step in self._saved_steps() if self._is_whole(step)), 0)

    def cut_off(self) -> list[str]:
        """Return the names of the checkpoints that are newer than the newest whole one."""
        done = self.finished_steps()
        return [directory_name(step) for step in self._saved_steps() if step > done]

    def prune(self, keep: int) -> None:
        """Remove all checkpoints but the newest."""
        filesystem, path = fs.FileSystem.from_uri(self.path)
        for step in self._saved_steps()[keep:]:
            filesystem.delete_dir(f"{path}/{directory_name(step)}")

    def _saved_steps(self) -> list[int]:
        """Return the steps of all checkpoints, the newest first."""
        return sorted((int(found[1]) for name in self.folders() if (found := STEP.fullmatch(name))), reverse=True)

    def _is_whole(self, step: int) -> bool:
        filesystem, path = fs.FileSystem.from_uri(self.path)
        try:
            with filesystem.open_input_file(f"{path}/{directory_name(step)}/{CHECKPOINT}") as stream:
                return zipfile.is_zipfile(stream)
        except (OSError, ValueError):  # ValueError: pyarrow cannot seek in an empty file
            return False


def directory_name(step: int) -> str:
    """Return the folder name of the checkpoint that holds `step` finished steps."""
    return f"step-{step:08d}"


def step_of(path: str) -> int:
    """Return how many steps are finished in the checkpoint folder `path`."""
    return int(path.rstrip("/").rsplit("-", 1)[1])


def named(config: C, kind: str = "pretrain") -> C:
    """Return the config with a name, made of its kind and the time where it had none, and an absolute storage.

    A storage that is a folder of this machine is a path from then on, as addresses of files take no spaces.
    """
    folder = local_path(config.storage)
    storage = config.storage if folder is None else str(folder)
    name = config.name or datetime.now().strftime(f"{kind}-%Y%m%d-%H%M%S")
    return replace(config, name=name, storage=storage)  # type: ignore[type-var]


@contextmanager
def claimed(config: NamedConfig) -> Iterator[None]:
    """Hold the name of a run for this process, from before its folder is made; killed, the process lets go of it.

    On a storage that is no folder there is nothing to hold.

    Raises:
        ValueError: another process holds it, or the storage cannot be written.
    """
    if "://" in config.storage:
        yield
        return
    require_writable("storage", f"{config.storage}/{config.name}")
    Path(config.storage).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{config.storage}/.{config.name}.lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"name: another process works on {config.name!r} in {config.storage} just now") from error


def require_free(config: NamedConfig) -> None:
    """Refuse a name as `open_run` does and a storage as `claimed` does, before anything is started or made.

    Raises:
        ValueError: see there.
    """
    if config.name is not None:
        _refuse_name(named(config))
    if (storage := local_path(config.storage)) is not None:
        require_writable("storage", storage / (config.name or ""))


def open_run(config: NamedConfig) -> RunFolder:
    """Return the folder for a named run, refusing to touch a run that the user did not ask to continue.

    Raises:
        ValueError: the name is in use and `resume` was not asked; or there is nothing to resume; or the config differs
            from the one the run was started with.
    """
    folder = _refuse_name(config)
    if config.resume:
        _refuse_changes(yaml.safe_load(folder.read("config.yaml")), to_dict(config))
    return folder


def _refuse_name(config: NamedConfig) -> RunFolder:
    """Return the folder of a name that is free, or whose run can be resumed and is to be."""
    folder = RunFolder(f"{config.storage.rstrip('/')}/{config.name}")
    exists, run = folder.has("config.yaml"), f"{config.name!r} in {config.storage}"
    if exists and not config.resume:
        raise ValueError(
            f"name: a run {config.name!r} exists in {config.storage}; continue it with --resume, or choose another name"
        )
    if config.resume and not exists:
        raise ValueError(f"resume: there is no run {run}")
    if folder.has(FINISHED):
        raise ValueError(f"resume: the run {run} is finished; give another name to train more")
    return folder


def _refuse_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = flatten(before), flatten(now)
    changed = [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(FREE_ON_RESUME)
    ]
    if changed:
        raise ValueError(f"resume: the run was started with another config: {'; '.join(changed)}")
