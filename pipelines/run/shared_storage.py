"""Whether all nodes of a cluster see the same storage."""

from __future__ import annotations

import uuid

import ray
from ray.exceptions import RayTaskError

from pipelines.run.every_node import ask_every_node
from pipelines.run.folder import RunFolder
from pipelines.run.nodes import draws_views

MARK = "seen"


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
