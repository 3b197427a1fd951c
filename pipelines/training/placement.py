"""What a run takes of the cluster: enough for the workers, and always something left for the data pipeline."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from pipelines.run.causes import CalledAwayError
from pipelines.run.config import ComputeConfig
from pipelines.run.folder import LEAVE, RunFolder
from pipelines.run.nodes import INGEST, Nodes, may_grow, total, training_nodes

if TYPE_CHECKING:
    import torch

DATA_SHARE = 0.25
LEAST = 0.02  # CPUs of a worker
ROUNDING = 1e-9
SECONDS_FOR_ROOM = 10.0
SECONDS_BETWEEN_LOOKS = 30.0


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


class Plans:
    """How many workers a run may have, all of the size that fits the cluster as it is at the beginning.

    Args:
        compute: of the run.
        batch_size: the global batch.

    Raises:
        ValueError: the cluster is too small.
    """

    def __init__(self, compute: ComputeConfig, batch_size: int) -> None:
        nodes, _ = training_nodes()
        # Where nodes are still to come, only who knows them can say how large a worker is.
        self.awaits_nodes = may_grow(nodes) and compute.gpus is not None and compute.cpus_per_worker is not None
        fewest = compute.counts(batch_size)[-1]
        # By the fewest workers: an elastic run with GPUs for some of them must not train on CPUs.
        gpus = total(nodes, "GPU") >= fewest if compute.gpus is None else compute.gpus
        self.compute, self.batch_size = replace(compute, gpus=gpus), batch_size
        first = self.possible()[0]
        # Or all workers would be squeezed onto what a lost node leaves, and stay there when it comes back.
        self.compute = replace(self.compute, cpus_per_worker=first.resources["CPU"])

    def possible(self) -> list[Placement]:
        """Return the placements for which the cluster is large enough, or may become it, most workers first.

        Raises:
            ValueError: there is none.
        """
        if self.awaits_nodes:
            assert self.compute.cpus_per_worker is not None
            each = worker_resources(self.compute.cpus_per_worker, bool(self.compute.gpus))
            return [Placement(count, each, off_ingest=True) for count in self.compute.counts(self.batch_size)]
        found, refused = [], None
        nodes, ingest_cpus = training_nodes()
        for count in self.compute.counts(self.batch_size):
            try:
                found.append(plan_workers(replace(self.compute, workers=count, min_workers=None), nodes, ingest_cpus))
            except ValueError as error:
                refused = refused or error
        if not found:
            assert refused is not None
            advice = "; to wait for nodes that an autoscaler adds, set compute.gpus and compute.cpus_per_worker"
            raise ValueError(f"{refused}{advice if may_grow(nodes) else ''}")
        return found

    def choose(self, told: threading.Event) -> Placement:
        """Return the placement of the most workers for whom there is room, once there is room for the fewest.

        Raises:
            CalledAwayError: `told` was set while it waited.
        """
        said = ""
        while not told.is_set():
            try:
                plans = self.possible()
            except ValueError as error:  # Nodes are gone that were there when the run began.
                plans, waiting = [], f"waiting for nodes: {error}"
            for plan in plans:
                if has_room(plan, plan.workers, SECONDS_FOR_ROOM):
                    return plan
                waiting = f"waiting for room on the cluster: {plan}"
            if waiting != said:
                said = waiting
                print(waiting, file=sys.stderr, flush=True)
            if not plans:
                told.wait(SECONDS_FOR_ROOM)
        raise CalledAwayError("the run was told to end while it waited for room on the cluster, and did")

    @contextmanager
    def growing(self, placement: Placement, folder: RunFolder) -> Iterator[None]:
        """Inside the block, call the workers away as soon as there is room for more of them than it has."""
        if placement.workers == self.compute.workers:
            yield
            return
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                with suppress(ValueError, OSError):  # Nodes come and go, and storages; the next look may be luckier.
                    if self._has_room_for_more(placement):
                        folder.write(LEAVE, "there is room for more workers")
                        return

        threading.Thread(target=look, name="growing", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _has_room_for_more(self, placement: Placement) -> bool:
        larger = [plan for plan in self.possible() if plan.workers > placement.workers]
        return any(has_room(plan, plan.workers - placement.workers, SECONDS_FOR_ROOM) for plan in larger)


def has_room(placement: Placement, workers: int, seconds: float) -> bool:
    """Whether so many workers of a placement have room within some seconds; an autoscaler hears that they want it."""
    labels = [placement.labels] * workers
    group = ray.util.placement_group([placement.resources] * workers, bundle_label_selector=labels)
    try:
        return bool(group.wait(seconds))
    finally:
        ray.util.remove_placement_group(group)


class ReleasePlacement(WorkerGroupCallback, ControllerCallback):
    """Removes the placement group of a run's workers when the run's controller ends.

    Ray Train does so itself but for workers that fail between their start and their first step: of those it keeps the
    placement group until the job ends, and workers that are started again wait for its room for ever.
    """

    def __init__(self) -> None:
        self.group: Any = None

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """Called in the controller when the workers' processes are there."""
        self.group = ray.get(workers[0].execute_async(ray.util.get_current_placement_group))
        return {}

    async def before_controller_shutdown(self) -> None:
        """Called when the controller ends, for whatever reason."""
        if self.group is not None:
            ray.util.remove_placement_group(self.group)


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
    if each <= 0 or not hold(each, compute.workers, use_gpu, nodes, spared):
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
    return max((size for size in sizes if size > 0 and hold(size, workers, use_gpu, nodes, spared)), default=0.0)


def hold(cpus: float, workers: int, use_gpu: bool, nodes: Nodes, spared: float = 1.0) -> bool:
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
