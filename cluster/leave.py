"""Announce that this machine will be taken, as a cloud does with spot machines, and wait for its training to leave."""

from __future__ import annotations

import time

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated import autoscaler_pb2
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from cluster.connect import connect
from cluster.options import LeaveConfig

WORKER = "RayTrainWorker"
MOST_UNANSWERED = 3  # questions to the head
PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]


def leave(config: LeaveConfig) -> None:
    """Tell Ray that the node of this machine will be taken, and wait until no worker trains here or time is up.

    Runs that train here save a checkpoint and go on elsewhere. The node takes no new work, and may end once it is idle.

    Raises:
        ValueError: this machine is no node of the cluster, or Ray refuses.
    """
    with connect(config.address):
        context = ray.get_runtime_context()
        node = context.get_node_id()
        deadline = time.time() + config.within
        accepted, reason = GcsClient(address=context.gcs_address).drain_node(
            node, PREEMPTION, "lodisc leave", round(deadline * 1000)
        )
        if not accepted:
            raise ValueError(f"address: Ray does not let node {node} go: {reason}")
        print(f"node {node} leaves within {config.within} s; it takes no new work", flush=True)
        unanswered = 0
        while time.time() < deadline and unanswered < MOST_UNANSWERED:
            trains = _trains(node)
            if trains is False:
                break
            unanswered = unanswered + 1 if trains is None else 0
            time.sleep(0.5)
    if unanswered == MOST_UNANSWERED:
        print("the head of the cluster is gone, and with it what trained here", flush=True)
    else:
        print(
            "no worker trains here" if time.time() < deadline else "time is up, and workers still train here",
            flush=True,
        )


def _trains(node: str) -> bool | None:
    """Whether a training worker runs on a node; None where the head does not tell."""
    wanted: list[tuple[str, str, str | bool | int | float]]
    wanted = [("node_id", "=", node), ("class_name", "=", WORKER), ("state", "=", "ALIVE")]
    try:
        return bool(list_actors(filters=wanted, limit=1))
    except (RayStateApiException, OSError):
        return None
