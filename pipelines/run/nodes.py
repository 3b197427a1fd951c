"""What a run takes of the cluster: enough for the workers, and always something left for the data pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from pipelines.run.config import ComputeConfig

if TYPE_CHECKING:
    import torch

# Every cluster's head has one of it.
HEAD = "node:__internal_head__"
# The label of nodes that are there to draw views. Training stays off them; views are drawn on other nodes only with
# CPUs that these have to spare.
INGEST = "ingest"
ON_INGEST_NODES: dict[str, Any] = {"label_selector": {INGEST: "true"}, "fallback_strategy": [{"label_selector": {}}]}
DATA_SHARE = 0.25
LEAST = 0.02  # CPUs of a worker
ROUNDING = 1e-9


Nodes = Sequence[Mapping[str, float]]


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


@dataclass(frozen=True)
class Placement:
    """Where training workers go.

    Attributes:
        workers: how many.
        resources: of each.
        off_ingest: whether they keep off nodes that are there to draw views.
    """

    workers: int
    resources: dict[str, float]
    off_ingest: bool = False

    @property
    def use_gpu(self) -> bool:
        return "GPU" in self.resources

    @property
    def labels(self) -> dict[str, str]:
        """Return which nodes they may go to."""
        return {INGEST: "!true"} if self.off_ingest else {}

    def __str__(self) -> str:
        each = " and ".join(f"{count:g} {name}" for name, count in self.resources.items())
        return f"{self.workers} workers of {each}"


def plan_workers(compute: ComputeConfig, nodes: Nodes, ingest_cpus: float = 0.0) -> Placement:
    """Return the training workers' placement on a cluster of `nodes`.

    Workers that took every CPU would wait for ever for images that no CPU is left to decode, and so would a worker that
    is larger than any node: both are refused.

    Args:
        compute: of the run.
        nodes: the resources of each node that may train.
        ingest_cpus: CPUs of nodes that only draw views; with any, workers may take every CPU of the others.

    Raises:
        ValueError: the workers do not fit on the nodes beside one CPU of data work.
    """
    cpus, gpus = total(nodes, "CPU"), total(nodes, "GPU")
    use_gpu = gpus >= compute.workers if compute.gpus is None else compute.gpus
    if use_gpu and gpus < compute.workers:
        raise ValueError(f"compute.gpus: {compute.workers} workers need a GPU each, the cluster has {gpus:g}")
    spared = 0.0 if ingest_cpus >= 1 else 1.0
    each = compute.cpus_per_worker or worker_cpus(compute.workers, use_gpu, nodes, spared)
    if each <= 0 or not fit(each, compute.workers, use_gpu, nodes, spared):
        size = f" of {each:g} CPUs" if each > 0 else ""
        raise ValueError(
            f"compute: {compute.workers} workers{size} do not fit on the cluster's {len(nodes)} nodes ({cpus:g} CPUs) "
            f"{'with a CPU left for decoding images' if spared else 'beside those that draw views'}; lower "
            "compute.workers or compute.cpus_per_worker, or add CPUs"
        )
    return Placement(compute.workers, worker_resources(each, use_gpu), off_ingest=ingest_cpus > 0)


def worker_resources(cpus: float, use_gpu: bool) -> dict[str, float]:
    """Return what Ray reserves for a worker."""
    return {"CPU": cpus, **({"GPU": 1.0} if use_gpu else {})}


def worker_cpus(workers: int, use_gpu: bool, nodes: Nodes, spared: float = 1.0) -> float:
    """Return the CPUs to reserve for each of `workers`: an equal share of three quarters of them, one beside a GPU.

    It is less where the nodes do not hold workers so large, and 0 where they do not fit at all. From one CPU on it is a
    whole number. Where no CPU needs to be spared for data work, an equal share of all.
    """
    cpus = total(nodes, "CPU")
    share = (cpus - max(1.0, cpus * DATA_SHARE) if spared else cpus) / workers
    wanted = min(1.0, share) if use_gpu else share
    rooms = {room for node in nodes for room in (node.get("CPU", 0.0), node.get("CPU", 0.0) - spared)}
    parts = (room / count for room in rooms for count in range(1, workers + 1))
    sizes = {_rounded(size) for size in (wanted, *parts) if size <= wanted}
    return max((size for size in sizes if size > 0 and fit(size, workers, use_gpu, nodes, spared)), default=0.0)


def fit(cpus: float, workers: int, use_gpu: bool, nodes: Nodes, spared: float = 1.0) -> bool:
    """Whether the nodes hold so many workers, and wherever Ray places them some node has `spared` CPUs left, 0 or 1."""
    places = 0
    filled = 0  # workers that it takes to leave less than a CPU on every node
    for node in nodes:
        size = node.get("CPU", 0.0)
        held = int(size / cpus + ROUNDING)
        places += min(held, int(node.get("GPU", 0.0))) if use_gpu else held
        if size >= 1:
            needed = int((size - 1) / cpus + ROUNDING) + 1
            filled += needed if needed <= held else workers + 1
    return workers <= places and (not spared or workers < filled)


def _rounded(cpus: float) -> float:
    """Round down to what Ray counts, and to whole CPUs from one on."""
    return float(int(cpus)) if cpus >= 1 else math.floor(cpus * 1000) / 1000 if cpus >= LEAST else 0.0


def use_worker_cpus(compute: ComputeConfig, device: torch.device) -> None:
    """Give torch in this training worker as many threads as `threads_of` says."""
    import ray.train
    import torch

    context = ray.get_runtime_context()
    reserved = context.get_assigned_resources().get("CPU", 1.0)
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    workers = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(threads_of(compute, device.type, reserved, node.get("CPU", 1.0) / workers))


def threads_of(compute: ComputeConfig, device_type: str, reserved: float, share: float) -> int:
    """Return the threads of a training worker for which Ray reserved CPUs, on a node that has `share` CPUs a worker.

    Without a GPU, and unless the user said how many, it has its whole share, although some of that is reserved for data
    work: to draw views takes little of the time that a CPU takes to train on them. They are drawn at low priority
    (`pipelines/data/stream.py`), so training has every core while it has a batch, and they have them while it waits for
    one.
    """
    whole_share = device_type == "cpu" and compute.cpus_per_worker is None
    return max(1, int(share if whole_share else reserved))
