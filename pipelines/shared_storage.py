"""Whether all nodes of a cluster see the same storage."""

from __future__ import annotations

import uuid

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.resources import draws_views
from pipelines.run_folder import RunFolder

PATIENCE = 60.0  # seconds that nodes have to answer
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
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[_sees.options(scheduling_strategy=there).remote(folder)] = node["NodeManagerAddress"]
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
        blind = sorted(asked[answer] for answer in done if not ray.get(answer))
    finally:
        folder.remove_all()
    if blind:
        raise ValueError(
            f"storage: {', '.join(blind)} see another {storage} than the driver; name a folder that all nodes mount, "
            "or a bucket. `lodisc doctor` tells more"
        )


@ray.remote(num_cpus=0)
def _sees(folder: RunFolder) -> bool:
    return folder.has(MARK)
