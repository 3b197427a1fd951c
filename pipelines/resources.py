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


def use_worker_cpus() -> None:
    """Let torch use the CPUs that Ray reserved for this worker, and no more.

    A thread for every core looks faster, but torch's threads wait for each other: where the data pipeline takes one of
    their cores, all of them stand still.
    """
    reserved = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    torch.set_num_threads(max(1, int(reserved)))
