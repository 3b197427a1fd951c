"""The training loop, as every worker of every run goes through it."""

from __future__ import annotations

from contextlib import nullcontext

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from lodisc.distributed import average, rank
from pipelines.run.checkpoint import written_checkpoint
from pipelines.run.folder import directory_name
from pipelines.tracking.tracker import Tracker
from pipelines.training.learner import Job, Learner, Shards
from pipelines.training.placement import use_worker_cpus
from pipelines.training.preemption import Summons
from pipelines.training.watcher import Watcher


def train_worker(job: Job, shards: Shards) -> None:
    """Train from the last whole checkpoint, or from the initial weights, to the last step.

    Args:
        job: of the run.
        shards: `views`, this worker's share of the stream; and, by the names that the learner knows, images to score.

    Raises:
        NonFiniteLossError: training diverged, in all workers at the same step.
    """
    device = ray.train.torch.get_device()
    use_worker_cpus(job.config.compute, device)
    learner = job.learner(device, shards)
    watching = Watcher(job, learner) if rank() == 0 else nullcontext()
    with watching as watcher, Summons(job.folder, device) as summons:
        # Input: this worker's share of the views, drawn in other processes. On a GPU the copy is asynchronous.
        for batch in learner.batches():
            # Model and step. The replica averages gradients over the workers while the backward pass goes on.
            metrics = learner.train_step(batch)

            # Curves. The mean over workers is a collective and makes the device finish: `log_every_steps` spares it.
            if job.logs_at(learner.step):
                with learner.stopwatch.phase("report"):
                    means = synchronised(metrics)
                    if watcher:
                        watcher.log(means)

            # Look. It comes after the step, also the look at the start: nobody waits for scores before the first step.
            scores: dict[str, float] = {}
            for at in job.looks_after(learner.step):
                look = learner.look(at)
                if watcher and look:
                    watcher.show(at, look)
                    scores = look.scores if at == learner.step else scores

            # Save. Who is told to leave saves first, so that no step is lost; all hear it after the same step.
            leaves = summons.heard() and learner.step < job.total_steps
            if leaves or job.saves_at(learner.step):
                with learner.stopwatch.phase("report"):
                    save(learner, scores, watcher.tracker if watcher else None)
            if watcher:
                watcher.end_step()
            if leaves:
                return


def synchronised(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Return the metrics' means over all workers as plain numbers, with one collective and one device sync."""
    means = average(torch.stack([value.float() for value in metrics.values()]))
    return dict(zip(metrics, means.tolist(), strict=True))


def save(learner: Learner, scores: dict[str, float], tracker: Tracker | None) -> None:
    """Register the learner's state with Ray Train. All workers call it; the first one writes.

    Args:
        learner: whose state it is.
        scores: that were taken at its step.
        tracker: of the first worker; what it has not sent is kept with the state.
    """
    step, name = learner.step, directory_name(learner.step)
    metrics = {"step": step, "epoch": step / learner.job.steps_per_epoch, **scores}
    if tracker is None:
        ray.train.report(metrics, checkpoint_dir_name=name)
        return
    with written_checkpoint(learner.state() | {"unsent": tracker.unsent()}) as checkpoint:
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
    learner.job.folder.prune(learner.job.keep)
