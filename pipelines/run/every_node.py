"""Ask every node of a cluster the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")
PATIENCE = 60.0  # seconds that nodes have to answer


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
