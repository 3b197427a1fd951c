"""The state of a run on disk: written by the train loop, read by resume, evaluation and export."""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import torch
from pyarrow import fs

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from lodisc.unpickle import load_plain
from pipelines.run.folder import CHECKPOINT as FILE
from pipelines.run.folder import RunFolder, directory_name


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
    """Return the newest whole checkpoint of the run at `run_dir` (path or URI), None where there is none."""
    steps = RunFolder(run_dir).finished_steps()
    if steps == 0:
        return None
    filesystem, path = fs.FileSystem.from_uri(run_dir)
    return ray.train.Checkpoint(f"{path}/{directory_name(steps)}", filesystem)


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
