"""What a run takes of the cluster: enough for the workers, and always something left for the data pipeline."""

from __future__ import annotations

import ray
import ray.train
import torch

from pipelines.config import ComputeConfig

DATA_SHARE = 0.25


def plan_workers(compute: ComputeConfig, cluster: dict[str, float]) -> ray.train.ScalingConfig:
    """Return the training workers' placement on a cluster with resources `cluster` ({"CPU": 8.0, "GPU": 1.0}).

    Workers that took every CPU would wait for ever for images that no CPU is left to decode, so that is refused.

    Raises:
        ValueError: the workers do not fit beside one CPU of data work.
    """
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    use_gpu = gpus >= compute.workers if compute.gpus is None else compute.gpus
    if use_gpu and gpus < compute.workers:
        raise ValueError(f"compute.gpus: {compute.workers} workers need a GPU each, the cluster has {gpus:g}")
    each = compute.cpus_per_worker or _share(cpus, compute.workers, use_gpu)
    if each <= 0 or compute.workers * each + 1 > cpus:
        raise ValueError(
            f"compute: {compute.workers} workers x {each:g} CPUs leave less than 1 of the cluster's {cpus:g} CPUs for "
            "decoding images; lower compute.workers or compute.cpus_per_worker, or add CPUs"
        )
    resources = {"CPU": each, **({"GPU": 1.0} if use_gpu else {})}
    return ray.train.ScalingConfig(num_workers=compute.workers, use_gpu=use_gpu, resources_per_worker=resources)


def _share(cpus: float, workers: int, use_gpu: bool) -> float:
    for_data = max(1.0, cpus * DATA_SHARE)
    free = max(0.0, cpus - for_data) / workers
    wanted = 1.0 if use_gpu else free
    each = min(wanted, free)
    return float(int(each)) if each >= 1 else round(each, 3) if each > 0.01 else 0.0


def use_worker_cpus(compute: ComputeConfig, device: torch.device) -> None:
    """Give torch in this training worker as many threads as `threads_of` says."""
    context = ray.get_runtime_context()
    reserved = context.get_assigned_resources().get("CPU", 1.0)
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    workers = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(threads_of(compute, device.type, reserved, node.get("CPU", 1.0) / workers))


def threads_of(compute: ComputeConfig, device_type: str, reserved: float, share: float) -> int:
    """Return the threads of a training worker for which Ray reserved CPUs, on a node that has `share` CPUs a worker.

    Without a GPU, and unless the user said how many, it has its whole share, although some of that is reserved for data
    work: to draw views takes little of the time that a CPU takes to train on them. They are drawn at low priority
    (`pipelines/ingest.py`), so training has every core while it has a batch, and they have them while it waits for one.
    """
    whole_share = device_type == "cpu" and compute.cpus_per_worker is None
    return max(1, int(share if whole_share else reserved))
