"""How many trials a cluster holds side by side, such that none ever waits for what the others hold."""

from __future__ import annotations

import math
from dataclasses import replace

from pipelines.run.config import ComputeConfig
from pipelines.run.nodes import HEAD, Nodes, total
from pipelines.training.placement import LEAST, hold, plan_workers, worker_cpus

# A sampler learns from trials that have ended, and each trial has processes of its own.
MOST_BY_DEFAULT = 8
# What Ray Train takes of it for each run; where nothing is left of it, the run waits for ever.
CLEANER = 0.001


def driver(concurrent: int) -> dict[str, float]:
    """Return the resources of a trial's driver, such that `concurrent` of them fit and one more does not.

    It computes nothing, and so needs none of the CPUs that workers want.

    Ray Tune limits only how many trials are suggested at a time, not how many of a resumed sweep start again. Beyond 30
    trials side by side a few more fit, as room is left for what Ray Train needs.
    """
    share = min(math.floor(10_000 / (concurrent + 1)) + 1, math.floor(10_000 * (1 / concurrent - CLEANER)))
    return {HEAD: share / 10_000}


def plan_trials(compute: ComputeConfig, nodes: Nodes, trials: int, wanted: int | None) -> tuple[int, ComputeConfig]:
    """Return how many trials run side by side, and what the workers of each take.

    Wherever Ray places their workers, one CPU of some node is left to Ray Data, and a quarter of all unless
    `compute.cpus_per_worker` says how many a worker takes. Without GPUs a worker computes with one thread or more, so
    there are at most as many workers as CPUs; with GPUs it has as many CPUs as that of a run by itself.

    Args:
        compute: of the recipe.
        nodes: the resources of each, as {"CPU": 8.0, "GPU": 1.0}.
        trials: of the sweep.
        wanted: trials side by side; None for as many as fit, up to 8.

    Raises:
        ValueError: one trial does not fit, or not as many as are wanted.
    """
    use_gpu = bool(plan_workers(compute, nodes).use_gpu)
    cpus, gpus, workers = total(nodes, "CPU"), total(nodes, "GPU"), compute.workers

    def size(count: int) -> float:
        """Return the CPUs of a worker with so many trials side by side, 0 where these do not fit."""
        if compute.cpus_per_worker is None:
            each = worker_cpus(count * workers, use_gpu, nodes)
            least = worker_cpus(workers, use_gpu, nodes) if use_gpu else LEAST
            return each if each >= least and count * workers <= (gpus if use_gpu else cpus) else 0.0
        return compute.cpus_per_worker if hold(compute.cpus_per_worker, count * workers, use_gpu, nodes) else 0.0

    asked = wanted or min(MOST_BY_DEFAULT, trials)
    concurrent = next((count for count in range(asked, 1, -1) if size(count) > 0), 1)
    if wanted is not None and wanted > concurrent:
        raise ValueError(
            f"concurrent: the cluster ({cpus:g} CPUs, {gpus:g} GPUs) holds {concurrent} trials of {workers} workers "
            f"side by side, got {wanted}; lower concurrent, compute.workers or compute.cpus_per_worker"
        )
    concurrent = min(concurrent, trials)
    if concurrent == 1:
        return 1, compute
    return concurrent, replace(compute, gpus=use_gpu, cpus_per_worker=size(concurrent))
