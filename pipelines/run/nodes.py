"""The nodes of a cluster: what they have, what they are for, and what each of them sees."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.run.folder import RunFolder

# Every cluster's head has one of it.
HEAD = "node:__internal_head__"
# The label of nodes that are there to draw views. Training stays off them; views are drawn on other nodes only with
# CPUs that these have to spare.
INGEST = "ingest"
ON_INGEST_NODES: dict[str, Any] = {"label_selector": {INGEST: "true"}, "fallback_strategy": [{"label_selector": {}}]}
PATIENCE = 60.0  # seconds that nodes have to answer
MARK = "seen"

Nodes = Sequence[Mapping[str, float]]
T = TypeVar("T")


def node_resources() -> Nodes:
    """Return the resources of every node of the cluster that is there, as {"CPU": 8.0, "GPU": 1.0}."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def training_nodes() -> tuple[Nodes, float]:
    """Return the resources of the nodes that may train, and the CPUs of those that are there to draw views."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    ingest = [node["Resources"] for node in alive if draws_views(node)]
    return [node["Resources"] for node in alive if not draws_views(node)], total(ingest, "CPU")


def may_grow(nodes: Nodes) -> bool:
    """Whether more nodes may come: the head only drives, as those of clusters do that an autoscaler makes."""
    return any(HEAD in node and node.get("CPU", 0.0) == 0 for node in nodes)


def draws_views(node: Mapping[str, Any]) -> bool:
    """Whether a node, as `ray.nodes` gives it, is there to draw views."""
    return bool(node["Labels"].get(INGEST) == "true")


def total(nodes: Nodes, resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in nodes)


def ask_every_node(
    nodes: Sequence[Mapping[str, Any]], function: Callable[..., T], *arguments: Any
) -> list[T | RayError]:
    """Call a function on each node, and return its answers in the order of the nodes.

    In place of an answer is why there is none: GetTimeoutError after 60 s, RayTaskError where the function failed,
    another RayError where the node takes no work or died.

    Args:
        nodes: as `ray.nodes` gives them.
        function: of the node's id, then of `arguments`.
        arguments: for all.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append(task.options(scheduling_strategy=there).remote(node["NodeID"], *arguments))
    ray.wait(asked, num_returns=len(asked), timeout=PATIENCE)
    return [_answer(reference) for reference in asked]


def _answer(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference, timeout=0)
    except RayError as error:
        if isinstance(error, GetTimeoutError):
            ray.cancel(reference, force=True)
        return error


def require_shared(storage: str) -> None:
    """Refuse a storage that some node that may train does not see. Ray must be running.

    Raises:
        ValueError: naming the nodes.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and not draws_views(node)]
    if len(nodes) < 2:
        return
    folder = RunFolder(f"{storage}/.shared-{uuid.uuid4().hex}")
    folder.write(MARK, "")
    try:
        answers = ask_every_node(nodes, _sees, folder)
    finally:
        folder.remove_all()
    # Nodes that are leaving do not answer, and do not matter.
    told = zip(nodes, answers, strict=True)
    blind = sorted(node["NodeManagerAddress"] for node, sees in told if sees is False or isinstance(sees, RayTaskError))
    if blind:
        raise ValueError(
            f"storage: {', '.join(blind)} see another {storage} than the driver; name a folder that all nodes mount, "
            "or a bucket. `lodisc doctor` tells more"
        )


def _sees(node: str, folder: RunFolder) -> bool:
    return folder.has(MARK)
