"""How many trials a cluster holds side by side, such that none ever waits for what the others hold."""

from __future__ import annotations

import math
from dataclasses import replace

from pipelines.config import ComputeConfig
from pipelines.resources import DATA_SHARE, plan_workers

# A sampler learns from trials that have ended, and each trial has processes of its own.
MOST_BY_DEFAULT = 8
# A trial's driver computes nothing. Every cluster's head has this resource, so drivers need no CPU that workers want.
DRIVER = {"node:__internal_head__": 0.001}


def plan_trials(
    compute: ComputeConfig, cluster: dict[str, float], trials: int, wanted: int | None
) -> tuple[int, ComputeConfig]:
    """Return how many trials run side by side, and what the workers of each take.

    All their workers together leave a quarter of the CPUs, and at least one, to Ray Data. Without GPUs a worker
    computes with one thread or more, so there are at most as many workers as CPUs. A trial by itself takes what a run
    takes.

    Args:
        compute: of the recipe.
        cluster: its resources, as {"CPU": 8.0, "GPU": 1.0}.
        trials: of the sweep.
        wanted: trials side by side; None for as many as fit, up to 8.

    Raises:
        ValueError: one trial does not fit, or not as many as are wanted.
    """
    use_gpu = bool(plan_workers(compute, cluster).use_gpu)
    cpus, gpus, workers = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0), compute.workers
    for_data = max(1.0, cpus * DATA_SHARE)
    if compute.cpus_per_worker is not None:
        most = (cpus - 1) / (workers * compute.cpus_per_worker)
    elif use_gpu:
        most = (cpus - for_data) / (workers * min(1.0, (cpus - for_data) / workers))
    else:
        most = cpus / workers
    if use_gpu:
        most = min(most, gpus / workers)
    most = max(1, math.floor(most + 1e-9))
    if wanted is not None and wanted > most:
        raise ValueError(
            f"concurrent: the cluster ({cpus:g} CPUs, {gpus:g} GPUs) holds {most} trials of {workers} workers side by "
            f"side, got {wanted}; lower concurrent, compute.workers or compute.cpus_per_worker"
        )
    concurrent = min(wanted or min(most, MOST_BY_DEFAULT), trials)
    if concurrent == 1:
        return 1, compute
    each = compute.cpus_per_worker or _share((cpus - for_data) / (concurrent * workers), use_gpu)
    return concurrent, replace(compute, gpus=use_gpu, cpus_per_worker=each)


def _share(free: float, use_gpu: bool) -> float:
    """Return the CPUs to reserve for a worker, rounded down as Ray counts them."""
    if use_gpu:
        return min(1.0, free)
    return float(int(free)) if free >= 1 else math.floor(free * 1000) / 1000
