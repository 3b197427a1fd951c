"""What a cluster needs: each check reads what the nodes said, and says what to do where something is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from ray.util.state import list_nodes

from cluster.probe import Answers, versions
from lodisc.model import LoDisc
from pipelines.data.sources import size_of
from pipelines.run.config import PretrainConfig
from pipelines.run.nodes import training_nodes
from pipelines.tracking.store import SQLITE, without_password
from pipelines.training.placement import Plans

MOST_SKEW = 2.0  # seconds
SECONDS_FOR_DASHBOARD = 30
Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        verdict: how it is.
        subject: what was checked.
        text: what was found.
        advice: what to do; empty where all is well.
    """

    verdict: Verdict
    subject: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict:8} {self.subject:10} {self.text}"
        return f"{line}\n{'':19} -> {self.advice}" if self.advice else line


@dataclass(frozen=True)
class Node:
    """A node, and what it said.

    Attributes:
        address: its IP address.
        resources: as Ray counts them.
        answers: None where there are none.
        silence: why there are none.
        skew: seconds by which its clock is ahead of this machine's, at least; 0 within what the question took.
    """

    address: str
    resources: dict[str, float]
    answers: Answers | None
    silence: str = ""
    skew: float = 0.0


def check_nodes(nodes: list[Node]) -> Finding:
    silent = [node for node in nodes if node.answers is None]
    if silent:
        text = "; ".join(f"{node.address}: {node.silence}" for node in silent)
        advice = "install this package on every node (cluster/definitions/Dockerfile), and look at `ray logs` there"
        return Finding("problem", "nodes", text, advice)
    names = ", ".join(f"{node.address} ({node.resources.get('CPU', 0):g} CPUs{_gpus(node)})" for node in nodes)
    return Finding("ok", "nodes", f"{len(nodes)} answer: {names}")


def _gpus(node: Node) -> str:
    count = node.resources.get("GPU", 0)
    return f", {count:g} GPUs" if count else ""


def check_versions(nodes: list[Node]) -> Finding:
    here = versions()
    wrong = [
        f"{node.address} has {name} {version}, the driver {here[name]}"
        for node, answers in _answered(nodes)
        for name, version in answers.versions.items()
        if version != here[name]
    ]
    if wrong:
        return Finding("problem", "versions", "; ".join(wrong), "install the same on every node")
    return Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in here.items()))


def check_clocks(nodes: list[Node]) -> Finding:
    wrong = [f"{node.address} is {node.skew:+.1f} s off the driver" for node in nodes if abs(node.skew) > MOST_SKEW]
    if wrong:
        advice = "run chrony or another NTP service on every machine: curves in MLflow bear these times"
        return Finding("problem", "clocks", "; ".join(wrong), advice)
    return Finding("ok", "clocks", f"no node is more than {MOST_SKEW:g} s off the driver")


def check_dashboard() -> Finding:
    try:
        list_nodes(limit=1, timeout=SECONDS_FOR_DASHBOARD)
    except Exception as error:  # Ray raises many kinds
        advice = "install `ray[default]` and start the head with its dashboard: Ray Train asks it which runs ended"
        return Finding("problem", "dashboard", f"the head's does not answer: {type(error).__name__}", advice)
    return Finding("ok", "dashboard", "the head's answers")


def check_token(nodes: list[Node]) -> Finding:
    if all(answers.token for _, answers in _answered(nodes)):
        return Finding("ok", "token", "the cluster asks for one")
    text = "whoever reaches the cluster's ports can run any code on it"
    advice = "set RAY_AUTH_MODE=token and one token for all nodes (docs/cluster.md), or keep the network closed"
    return Finding("warning", "token", text, advice)


def check_storage(nodes: list[Node], storage: str, unwritable: str) -> Finding:
    failed = [f"{node.address}: {answers.storage}" for node, answers in _answered(nodes) if answers.storage]
    if unwritable or failed:
        text = f"{storage}: {'; '.join([unwritable] if unwritable else failed)}"
        advice = "name a folder that all nodes mount, or a bucket, with --storage"
        return Finding("problem", "storage", text, advice)
    return Finding("ok", "storage", f"every node writes to {storage} and reads what the others wrote")


def check_tracking(nodes: list[Node], uri: str) -> Finding:
    failed = [(node.address, answers.tracking) for node, answers in _answered(nodes) if answers.tracking]
    shown = without_password(uri)
    if failed:
        blind, why = ", ".join(address for address, _ in failed), without_password(failed[0][1])[:150]
        advice = "give --tracking.uri an address that the nodes reach; 127.0.0.1 is each node itself"
        return Finding("problem", "tracking", f"{shown} is not reached from {blind}: {why}", advice)
    if uri.startswith(SQLITE) and len(nodes) > 1:
        advice = "start an MLflow server (cluster/definitions/mlflow-compose.yaml) and give --tracking.uri its address"
        return Finding("warning", "tracking", f"{shown} is a file, which several machines can break", advice)
    return Finding("ok", "tracking", f"every node reaches {shown}")


def check_workers(config: PretrainConfig) -> Finding:
    try:
        plan = Plans(config.compute, config.optim.batch_size).possible()[0]
    except ValueError as error:
        return Finding("problem", "workers", str(error), "fewer workers, or more nodes")
    _, ingest = training_nodes()
    draws = f"; {ingest:g} CPUs of ingest nodes draw views" if ingest else ""
    return Finding("ok", "workers", f"there is room for {plan}{draws}")


def check_gpus(nodes: list[Node]) -> Finding:
    blind = [
        f"{node.address} offers {node.resources['GPU']:g}, torch sees {len(answers.gpus)}"
        for node, answers in _answered(nodes)
        if node.resources.get("GPU", 0) > len(answers.gpus)
    ]
    if blind:
        advice = (
            "install a driver and a torch that fit; `python -c 'import torch; torch.cuda.init()'` there tells why not"
        )
        return Finding("problem", "gpus", "; ".join(blind), advice)
    idle = [f"{node.address}" for node, answers in _answered(nodes) if answers.gpus and not node.resources.get("GPU")]
    if idle:
        return Finding("warning", "gpus", f"Ray does not know of those of {', '.join(idle)}", "ray start --num-gpus=N")
    total = sum(len(answers.gpus) for _, answers in _answered(nodes))
    return Finding("ok", "gpus", f"{total} in the cluster" if total else "none; training runs on CPUs")


def check_memory(nodes: list[Node], config: PretrainConfig) -> Finding:
    """Compare what the model and its optimiser take with the smallest place that a worker can get."""
    with torch.device("meta"):
        model = LoDisc(replace(config.encoder, weights="random"), config.model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    needed = 4 * (total + 3 * trained)  # weights, gradients and AdamW's two moments, float32
    gpus = [memory for _, answers in _answered(nodes) for memory in answers.gpus]
    least = min(gpus or [answers.memory for _, answers in _answered(nodes)], default=0)
    text = f"a worker's weights, gradients and moments take {_gigabytes(needed)}, its activations more"
    place = "GPU" if gpus else "node"
    if needed > least:
        advice = "take a smaller encoder.arch or larger machines"
        return Finding("problem", "memory", f"{text}; the smallest {place} has {_gigabytes(least)}", advice)
    return Finding("ok", "memory", f"{text}; the smallest {place} has {_gigabytes(least)}")


def check_shared_memory(nodes: list[Node]) -> Finding:
    small = [
        f"{node.address} has {_gigabytes(answers.shared_memory or 0)} for {_gigabytes(_store_bytes(node))}"
        for node, answers in _answered(nodes)
        if (answers.shared_memory or 0) < _store_bytes(node)
    ]
    if small:
        advice = "give containers a larger /dev/shm (--shm-size, or an emptyDir in memory); Ray takes a slow disk else"
        return Finding("warning", "/dev/shm", "; ".join(small), advice)
    return Finding("ok", "/dev/shm", "holds every node's object store")


def check_source(nodes: list[Node], source: str) -> Finding:
    failed = [
        f"{node.address}: {answers.images[source]}" for node, answers in _answered(nodes) if answers.images[source]
    ]
    if failed:
        return Finding("problem", "images", "; ".join(failed), "name a folder that all nodes mount, or a bucket")
    return Finding("ok", "images", f"every node finds {source}")


def check_object_store(nodes: list[Node], sources: Sequence[str]) -> Finding:
    try:
        needed = sum(map(size_of, sources))
    except (ValueError, OSError) as error:
        return Finding("problem", "images", str(error), "see `lodisc pretrain --help` for what images can be")
    store = sum(map(_store_bytes, nodes))
    text = f"the images are {_gigabytes(needed)}, the object stores {_gigabytes(store)}"
    if needed > store:
        advice = "they spill to disk and training waits: `lodisc prepare --max_side 256` makes them small, or add nodes"
        return Finding("warning", "images", text, advice)
    return Finding("ok", "images", text)


def _answered(nodes: list[Node]) -> list[tuple[Node, Answers]]:
    return [(node, node.answers) for node in nodes if node.answers is not None]


def _store_bytes(node: Node) -> int:
    return int(node.resources.get("object_store_memory", 0))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2g} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"
