"""Naming what made a run fail: errors that real tasks, actors, data sets and workers of Ray end with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
import ray.train
import torch
from ray import cloudpickle

from lodisc.config import EncoderConfig, ModelConfig
from pipelines.data.decode import ImageError
from pipelines.run.causes import WorkersFailedError, explain, innermost, is_of_ray, may_help, name_cause
from pipelines.run.config import ComputeConfig, DataConfig, InTrainingConfig, OptimConfig, PretrainConfig
from pipelines.training.pretrain import pretrain
from pipelines.training.pretraining import PretrainJob

OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, \
ID: 4b14) was 22.84GB used / 23.54GB limit (0.970)
OOM kill reason: Memory usage 24494917120B exceeded threshold of 24012677065B (95.0% of 25276502016B limit)
Considered workers: [
]
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
4830\t17.51\t/opt/bin/python -m another.program --large
12571\t2.51\tray::RayTrainWorker
11382\t0.49\tray::IDLE
11109\t0.48\tray::IDLE
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/. Consider provisioning more.
"""


def caught(call: Callable[[], Any]) -> Exception:
    """Return what a call raises."""
    with pytest.raises(Exception) as raised:
        call()
    return raised.value


def forbidden(row: Any) -> Any:
    raise PermissionError(13, "Permission denied", "/private/x.jpg")


def damaged(row: Any) -> Any:
    try:
        raise OSError("broken data stream when reading image file")
    except OSError as error:
        raise ImageError(f"cut off or damaged ({error})") from error


def strange(row: Any) -> Any:
    class Strange(Exception):
        """One that cannot be pickled, so that Ray keeps but its text."""

        def __init__(self) -> None:
            super().__init__("odd")
            self.file = open(os.devnull)  # noqa: SIM115

    raise Strange


@ray.remote(max_retries=0, num_cpus=0)
def task(work: Callable[[Any], Any]) -> Any:
    return work(None)


class Worker:
    def __init__(self, work: Callable[[Any], Any] | None = None) -> None:
        if work:
            work(None)

    def do(self, work: Callable[[Any], Any]) -> Any:
        return work(None)

    def ask(self, work: Callable[[Any], Any]) -> Any:
        return ray.get(task.remote(work))


Actor: Any = ray.remote(num_cpus=0)(Worker)


def die(row: Any) -> None:
    os.kill(os.getpid(), 9)


def failed(**workers: Exception) -> ray.train.WorkerGroupError:
    return ray.train.WorkerGroupError("all of it", {int(name[1:]): error for name, error in workers.items()})


@pytest.mark.slow
def test_errors_of_a_function_of_rows_are_found_below_ray_datas(ray_session: None) -> None:
    """Ray Data hands on the text of their tracebacks alone, and its own advice to programmers."""
    error = caught(lambda: ray.data.range(2).map(forbidden).materialize())
    assert isinstance(innermost(error), PermissionError)
    assert explain(error).startswith("PermissionError: [Errno 13] Permission denied: '/private/x.jpg' on node ")
    assert explain(error).endswith("; let the user that Ray runs as do this, on every node")
    assert is_of_ray(error) and not may_help(error)

    error = caught(lambda: ray.data.range(2).map_batches(damaged).materialize())
    assert isinstance(innermost(error), ImageError)
    assert "ImageError: cut off or damaged (broken data stream when reading image file) on node" in explain(error)
    assert not may_help(error)

    error = caught(lambda: ray.data.range(2).map(strange).materialize())
    assert explain(error).startswith("Strange: odd on node")
    # A worker that reads the rows is told by the actor that splits them.
    reading = caught(lambda: list(ray.data.range(2).map(forbidden).streaming_split(1)[0].iter_rows()))
    assert isinstance(innermost(failed(w0=reading)), PermissionError)
    assert explain(failed(w0=reading)).startswith("worker 0: PermissionError: [Errno 13] Permission denied")


@pytest.mark.slow
def test_errors_of_tasks_and_actors_are_found(ray_session: None) -> None:
    actor = Actor.remote()
    for call in (
        lambda: ray.get(task.remote(forbidden)),
        lambda: ray.get(actor.do.remote(forbidden)),
        lambda: ray.get(actor.ask.remote(forbidden)),
        lambda: ray.get(Actor.remote(forbidden).do.remote(forbidden)),
    ):
        error = caught(call)
        assert isinstance(innermost(error), PermissionError) and not may_help(error), error
        assert "PermissionError: [Errno 13] Permission denied: '/private/x.jpg' on node" in explain(error)
        controller = ray.train.ControllerError(error)
        assert explain(cloudpickle.loads(cloudpickle.dumps(controller))) == explain(error)
    assert explain(caught(lambda: ray.get(task.remote(strange)))).startswith("Strange: odd")


@pytest.mark.slow
def test_the_dead_may_be_replaced(ray_session: None) -> None:
    crashed = caught(lambda: ray.get(task.remote(die)))
    died = caught(lambda: ray.get(Actor.remote().do.remote(die)))
    assert explain(crashed).startswith("WorkerCrashedError: The worker died unexpectedly")
    assert explain(died).startswith("ActorDiedError: The actor died unexpectedly")
    assert f"on node {ray.util.get_node_ip_address()}" in explain(died)
    for error in (crashed, died):
        assert may_help(error) and "SIGKILL" in explain(error) and "\n" not in explain(error)


def test_want_of_memory_is_told_in_a_line_with_who_took_it() -> None:
    error = ray.exceptions.OutOfMemoryError(OUT_OF_MEMORY)
    said = explain(ray.train.ControllerError(error))
    assert said.startswith(
        "OutOfMemoryError: 22.84GB of 23.54GB of the memory of node 10.0.0.7 are used, and Ray allows 95.0%; most is "
        "taken by python -m another.program --large 17.51 GB, ray::RayTrainWorker 2.51 GB, ray::IDLE 0.49 GB; "
    )
    assert "lower the batch size (optim.batch_size)" in said and "\n" not in said
    assert may_help(error) and may_help(error, began=False)
    assert explain(ray.exceptions.OutOfMemoryError("no memory\nat all")).startswith("OutOfMemoryError: no memory; ")


def test_who_failed_first_is_named() -> None:
    """When a worker fails, the others fail at their next exchange with it."""
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:1234. Read more.")
    assert name_cause(failed(w0=gloo, w1=TypeError("no"))) == "worker 1: TypeError: no"
    assert name_cause(failed(w0=TypeError("no"), w1=ray.exceptions.NodeDiedError("gone"))).startswith("worker 1: NodeD")
    assert not may_help(failed(w0=gloo, w1=TypeError("no")))
    assert may_help(failed(w0=gloo)) and "\n" not in explain(failed(w0=gloo))


@pytest.mark.parametrize(
    ("error", "helps", "advice"),
    [
        (OSError(28, "No space left on device", "/runs/a"), True, "make room on that disk"),
        (OSError(122, "Disk quota exceeded", "/runs/a"), True, "quota"),
        (FileNotFoundError(2, "No such file or directory", "w.safetensors"), False, "absolute path"),
        (ImageError("cut off"), False, "lodisc prepare"),
        (ConnectionRefusedError(111, "Connection refused"), True, "reaches it"),
        (ray.exceptions.GetTimeoutError("too late"), True, "reaches it"),
        (ray.exceptions.ObjectStoreFullError("full"), True, "larger object store"),
        (ray.exceptions.NodeDiedError("gone"), True, "machine is up"),
        (ray.exceptions.ReferenceCountingAssertionError("ab", b"", ""), True, "Failed to retrieve object ab"),
        (RuntimeError("CUDA error: uncorrectable ECC error"), True, "ECC"),
        (KeyError("view1"), False, "KeyError: 'view1'"),
        (ValueError("encoder.weights: x cannot be\nread"), False, "ValueError: encoder.weights: x cannot be read"),
        (TypeError(), False, "TypeError"),
    ],
)
def test_what_can_help_and_what_to_do(error: Exception, helps: bool, advice: str) -> None:
    assert may_help(error) is helps
    assert advice in explain(error) and "\n" not in explain(error)


def test_a_batch_that_is_too_large_is_not_tried_again_but_one_that_once_fitted_is() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), MemoryError()):
        assert may_help(error) and not may_help(error, began=False)
        assert "optim.batch_size" in explain(error)


def test_an_error_that_says_all_is_not_gone_through() -> None:
    try:
        damaged(None)
    except ImageError as error:
        assert innermost(error) is error


class NoRight(PretrainJob):
    """A run whose workers may not do what they must."""

    def learner(self, device: torch.device, shards: Any) -> Any:
        with open(f"{self.folder.path}/tries", "a") as tries:
            tries.write("x")
        raise PermissionError(13, "Permission denied", "/private/cache")


@pytest.mark.slow
def test_a_run_whose_code_fails_is_tried_once(
    ray_session: None,
    image_folder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = PretrainConfig(
        data=DataConfig(images=str(image_folder(classes=2, per_class=8))),
        encoder=EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2),
        model=ModelConfig(hidden_dim=64, output_dim=32, head_dropout=0.0),
        optim=OptimConfig(epochs=1, batch_size=8, warmup_epochs=0, precision="fp32"),
        evaluation=InTrainingConfig(every_epochs=1),
        compute=ComputeConfig(restarts=3),
        name="forbidden",
        storage=str(tmp_path / "runs"),
    )
    monkeypatch.setattr("pipelines.training.pretrain.PretrainJob", NoRight)
    with pytest.raises(WorkersFailedError) as raised:
        pretrain(config)
    assert str(raised.value) == (
        "the workers failed: worker 0: PermissionError: [Errno 13] Permission denied: '/private/cache'; let the user "
        "that Ray runs as do this, on every node; --resume begins it again"
    )
    assert (tmp_path / "runs" / "forbidden" / "tries").read_text() == "x"
    assert "going on" not in capfd.readouterr().err
