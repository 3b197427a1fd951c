"""The state of a run on disk: written by the train loop, read by resume, evaluation and export."""

from __future__ import annotations

import hashlib
import logging
import posixpath
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import torch
from pyarrow import fs
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as REGISTER
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    CheckpointManager,
    _CheckpointManagerState,
    _TrainingResultState,
)

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from lodisc.unpickle import load_plain

FILE = "checkpoint.pt"
# Ray says of every run folder that it has checkpoints, for those who meant to start a new run there.
logging.getLogger(CheckpointManager.__module__).setLevel(logging.WARNING)


def directory_name(step: int) -> str:
    """Return the folder name of the checkpoint that holds `step` finished steps."""
    return f"step-{step:08d}"


def step_of(path: str) -> int:
    """Return how many steps are finished in the checkpoint folder `path`."""
    return int(path.rstrip("/").rsplit("-", 1)[1])


@contextmanager
def written_checkpoint(state: dict[str, Any]) -> Iterator[ray.train.Checkpoint]:
    """Write `state` to a temporary folder, as a checkpoint ready to report."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / FILE)
        yield ray.train.Checkpoint.from_directory(folder)


def read_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """Read a checkpoint's tensors to the CPU. Only tensors and plain values are ever unpickled.

    Raises:
        ValueError: the file is damaged, or holds anything else, as code that would run when it is unpickled.
    """
    with checkpoint.as_directory() as folder:
        try:
            state: dict[str, Any] = load_plain(Path(folder) / FILE)
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}/{FILE} cannot be read: {error}") from error
    return state


def last_checkpoint(run_dir: str) -> ray.train.Checkpoint | None:
    """Return the newest checkpoint that the run at `run_dir` (path or URI) registered, None where there is none.

    A checkpoint folder that Ray did not register was cut off while being written; it is not a checkpoint.

    Raises:
        ValueError: Ray's register of the run's checkpoints is damaged.
    """
    for pause in (0.05, 0.2, 1.0, None):
        try:
            return ray.train.Result.from_path(run_dir).checkpoint
        except CheckpointManagerInitializationError as error:
            # Ray rewrites its register in place: who reads it meanwhile finds half of it.
            if pause is None:
                raise ValueError(
                    f"{run_dir}: Ray's register of its checkpoints cannot be read: {error}. `--resume` repairs it"
                ) from error
            time.sleep(pause)
        except RuntimeError:
            return None
    raise AssertionError("the last attempt returns or raises")


def repair_register(run_dir: str) -> None:
    """Write Ray's register of a run's checkpoints anew, from the checkpoints, where Ray cannot read it.

    Ray rewrites it in place: a driver that is killed meanwhile, or a disk that is full, leaves half of it.

    Raises:
        OSError: the storage refuses it.
    """
    try:
        ray.train.Result.from_path(run_dir)
        return
    except CheckpointManagerInitializationError:
        pass
    except RuntimeError:
        return  # There is none yet.
    filesystem, path = fs.FileSystem.from_uri(run_dir)
    register = f"{path}/{REGISTER}"
    folders = filesystem.get_file_info(fs.FileSelector(path))
    steps = sorted(item.base_name for item in folders if item.base_name.startswith("step-"))
    whole = [name for name in steps if _is_whole(filesystem, f"{path}/{name}/{FILE}")]
    print(
        f"{run_dir}/{REGISTER} cannot be read, as if it was being written when a process was killed or the disk was "
        f"full; it is written anew with {', '.join(whole) or 'no checkpoint, as none is whole'}",
        file=sys.stderr,
        flush=True,
    )
    # Beside it first: it must never again be half of one.
    with filesystem.open_output_stream(f"{register}.new") as stream:
        stream.write(_register(whole).encode())
    filesystem.move(f"{register}.new", register)


def _register(names: list[str]) -> str:
    """Return Ray's register of the checkpoint folders, oldest first."""
    results = [_TrainingResultState(checkpoint_dir_name=name, metrics={"step": step_of(name)}) for name in names]
    state = _CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=list(range(len(names))),
        latest_checkpoint_result=results[-1] if results else None,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(names),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    return state.model_dump_json()


def _is_whole(filesystem: fs.FileSystem, file: str) -> bool:
    """Whether a file that torch wrote is there to its end, every checksum right."""
    try:
        with filesystem.open_input_file(file) as stream, zipfile.ZipFile(stream) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def find_checkpoint(path: str) -> ray.train.Checkpoint:
    """Return the checkpoint at `path`: a checkpoint folder, or a run folder, whose newest one is taken.

    Raises:
        ValueError: there is none.
    """
    location = path if "://" in path else str(Path(path).absolute())
    filesystem, plain_path = fs.FileSystem.from_uri(location)
    if filesystem.get_file_info(f"{plain_path}/{FILE}").type == fs.FileType.File:
        return ray.train.Checkpoint(plain_path, filesystem)
    checkpoint = last_checkpoint(location)
    if checkpoint is None:
        raise ValueError(f"{path}: neither a checkpoint folder (no {FILE} in it) nor a run with a finished checkpoint")
    return checkpoint


def checkpoint_location(path: str) -> str:
    """Return the checkpoint folder that `find_checkpoint` finds for `path`, as an absolute path or URI.

    Raises:
        ValueError: there is none.
    """
    found = str(find_checkpoint(path).path)
    if "://" not in path:
        return posixpath.normpath(found)
    _, plain_path = fs.FileSystem.from_uri(path.rstrip("/"))
    return path.rstrip("/") + found.removeprefix(plain_path)


def weights_fingerprint(encoder: Encoder) -> str:
    """Return a short hash that changes with any weight of the encoder, wherever its checkpoint lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_encoder(path: str, untrained: bool = False, momentum: bool = False) -> tuple[Encoder, dict[str, Any]]:
    """Return the base encoder of a checkpoint, in evaluation mode on the CPU, and what the checkpoint says of its run.

    Args:
        path: a checkpoint folder or a run folder, local or URI.
        untrained: give the encoder as it was before the first step: drawn again from the run's seed, or read again from
            where the config says.
        momentum: give the momentum encoder, whose attention places the pivots in training. Before the first step it is
            the base encoder.

    Returns:
        The encoder, and {"step": int, "config": nested dict, "run_id": str, "tracking_uri": str}.

    Raises:
        ValueError: there is no checkpoint, or it is that of a classifier.
    """
    state = read_state(find_checkpoint(path))
    if "encoder" not in state["config"]:
        raise ValueError(f"{path}: holds a classifier that `lodisc finetune` trained; name the run that pretrained it")
    config = EncoderConfig(**{**state["config"]["encoder"], "weights": "random"})
    prefix = "momentum_encoder." if momentum else "encoder."
    weights = {key.removeprefix(prefix): value for key, value in state["model"].items() if key.startswith(prefix)}
    torch.manual_seed(state["config"]["seed"])
    encoder = Encoder(EncoderConfig(**state["config"]["encoder"]) if untrained else config)
    if not untrained:
        encoder.load_state_dict(weights)
    return encoder.eval(), {key: state[key] for key in ("step", "config", "run_id", "tracking_uri")}
