"""The training loop, as every worker runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import ray.data
import ray.train
import ray.train.torch
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lodisc.attention import fuse_attention
from lodisc.distributed import average, rank, world_size
from lodisc.model import LoDisc
from lodisc.normalise import normalise
from lodisc.precision import autocast, fused_trains_faster, resolve_precision
from lodisc.schedules import learning_rate_at, momentum_at
from pipelines.data.samples import seed_of
from pipelines.data.stream import training_batches
from pipelines.run.checkpoint import directory_name, read_state, written_checkpoint
from pipelines.run.config import PretrainConfig, to_dict
from pipelines.run.folder import RunFolder
from pipelines.run.progress import Style
from pipelines.tracking.journal import Entry
from pipelines.tracking.runs import RunHandle
from pipelines.tracking.tracker import Tracker
from pipelines.training.placement import use_worker_cpus
from pipelines.training.preemption import Summons
from pipelines.training.timing import Stopwatch
from pipelines.training.watcher import Watcher


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient stopped being a number."""


@dataclass(frozen=True)
class TrainJob:
    """What the driver hands to every worker.

    Attributes:
        config: of the run.
        steps_per_epoch: whole batches in the training images.
        run: the MLflow run that the first worker writes to.
        folder: of the run.
        progress: how the user is shown where the run is.
    """

    config: PretrainConfig
    steps_per_epoch: int
    run: RunHandle
    folder: RunFolder
    progress: Style

    @property
    def total_steps(self) -> int:
        return self.config.optim.epochs * self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` finished steps are a whole number of epochs."""
        return step % self.steps_per_epoch == 0

    def saves_at(self, step: int) -> bool:
        every = self.config.checkpoint.every_steps
        return self.ends_epoch(step) or (every is not None and step % every == 0)

    def watches_at(self, step: int) -> bool:
        every = self.config.evaluation.every_epochs * self.steps_per_epoch
        return step % every == 0 or step == self.total_steps


def train_worker(job: TrainJob, shards: Mapping[str, ray.data.DataIterator]) -> None:
    """Train from the last registered checkpoint, or from the initial weights, to the last step.

    Args:
        job: of the run.
        shards: `views`, this worker's share of the stream; `gallery` and, where there are any, `held_out`, to score on.

    Raises:
        NonFiniteLossError: training diverged, in all workers at the same step.
    """
    device = ray.train.torch.get_device()
    use_worker_cpus(job.config.compute, device)
    learner = Learner(job, device, shards["views"])
    watching = Watcher(job, learner, shards) if rank() == 0 else nullcontext()
    with watching as watcher, Summons(job.folder, device) as summons:
        for view1, view2 in learner.batches():
            metrics = learner.train_step(view1, view2)
            if learner.step % job.config.evaluation.log_every_steps == 0:
                with learner.stopwatch.phase("report"):
                    means = synchronised(metrics)
                    if watcher:
                        watcher.log(means)
            if watcher and learner.step == 1:
                watcher.look_back()
            scores = watcher.look() if watcher and job.watches_at(learner.step) else {}
            leaves = summons.heard() and learner.step < job.total_steps
            if leaves or job.saves_at(learner.step):
                with learner.stopwatch.phase("report"):
                    epoch = learner.step / job.steps_per_epoch
                    tracker = watcher.tracker if watcher else None
                    report_checkpoint(learner.state, {"step": learner.step, "epoch": epoch, **scores}, tracker)
            if watcher:
                watcher.end_step()
            if leaves:
                return


class Learner:
    """Model, optimiser and stream of one worker; always `step` finished steps into the run.

    Nothing here depends on what happened before the last step: random numbers are seeded by the step, the stream
    starts at any step, so a checkpoint needs no generator states.
    """

    def __init__(self, job: TrainJob, device: torch.device, shard: ray.data.DataIterator) -> None:
        config = job.config
        self.job, self.device, self.shard = job, device, shard
        self.dtype = resolve_precision(config.optim.precision, device)
        torch.manual_seed(config.seed)
        self.model = LoDisc(config.encoder, config.model).to(device)
        fuse_attention(self.model.encoder.vit, fused_trains_faster(self.dtype, device))
        self.replica = ray.train.torch.prepare_model(self.model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=config.optim.weight_decay, fused=True)
        self.stopwatch = Stopwatch(device)
        self.step = 0
        self.unsent: list[Entry] = []
        self.flops_per_step: float | None = None
        saved = ray.train.get_checkpoint()
        if saved is not None:
            self._restore(read_state(saved))

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.unsent = state["step"], state.get("unsent", [])

    def state(self) -> dict[str, Any]:
        """Return all that a later worker, evaluation or export needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "config": to_dict(self.job.config),
            "run_id": self.job.run.run_id,
            "tracking_uri": self.job.run.uri,
        }

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this worker's share of every step that is still to do: two uint8 views (B, 3, H, W) on the device."""
        share = self.job.config.optim.batch_size // world_size()
        stream = training_batches(self.shard, share)
        while True:
            with self.stopwatch.phase("wait"):
                batch = next(stream, None)
            if batch is None:
                break
            sample, view1, view2 = batch
            first = self.step * self.job.config.optim.batch_size
            assert sample.min() >= first and sample.max() < first + share * world_size(), "the stream is out of step"
            with self.stopwatch.phase("copy"):
                view1, view2 = view1.to(self.device), view2.to(self.device)
            yield view1, view2
        assert self.step == self.job.total_steps, f"the stream ended at step {self.step} of {self.job.total_steps}"

    def train_step(self, view1: Tensor, view2: Tensor) -> dict[str, Tensor]:
        """Take one optimiser step on this worker's views.

        Returns:
            Detached scalars of this worker; see `LoDisc.forward` for the names.

        Raises:
            NonFiniteLossError: before the parameters are touched, naming the step.
        """
        config, total = self.job.config, self.job.total_steps
        torch.manual_seed(seed_of(config.seed, self.step, rank()))
        momentum = momentum_at(self.step, total, config.model.momentum)
        peak = config.optim.base_lr * config.optim.batch_size / 256
        warmup = round(config.optim.warmup_epochs * self.job.steps_per_epoch)
        learning_rate = learning_rate_at(self.step, total, warmup, peak)

        counter = FlopCounterMode(display=False) if self.flops_per_step is None else nullcontext()
        with counter:
            with self.stopwatch.phase("forward"), autocast(self.dtype, self.device):
                self.model.update_momentum(momentum)
                loss, metrics = self.replica(normalise(view1), normalise(view2))
            with self.stopwatch.phase("backward"):
                loss.backward()
        if isinstance(counter, FlopCounterMode):
            self.flops_per_step = float(counter.get_total_flops())
        with self.stopwatch.phase("optimizer"):
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.optim.clip_norm or float("inf"))
            self._require_finite(loss, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        schedule = {"schedule/learning_rate": learning_rate, "schedule/momentum": momentum}
        return metrics | {"gradient/norm": norm} | {k: torch.tensor(v, device=self.device) for k, v in schedule.items()}

    def _require_finite(self, loss: Tensor, norm: Tensor) -> None:
        # The gradient is the same on all workers, so all end here or none does; a loss that is no number makes it one.
        if torch.isfinite(norm):
            return
        raise NonFiniteLossError(
            f"step {self.step}: loss {loss.item():g}, gradient norm {norm.item():g}. The last checkpoint is from "
            "before. Lower optim.base_lr, set optim.clip_norm, lengthen optim.warmup_epochs, or set "
            "optim.precision to fp32."
        )


def synchronised(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Return the metrics' means over all workers as plain numbers, with one collective and one device sync."""
    means = average(torch.stack([value.float() for value in metrics.values()]))
    return dict(zip(metrics, means.tolist(), strict=True))


def report_checkpoint(state: Callable[[], dict[str, Any]], metrics: dict[str, float], tracker: Tracker | None) -> None:
    """Register a state with Ray Train, and what was measured at its `step`. All workers call it.

    Args:
        state: of the learner.
        metrics: for Ray Train.
        tracker: of the first worker, who writes; what it has not sent is kept with the state.
    """
    name = directory_name(int(metrics["step"]))
    if tracker is None:
        ray.train.report(metrics, checkpoint_dir_name=name)
        return
    with written_checkpoint(state() | {"unsent": tracker.unsent()}) as checkpoint:
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
