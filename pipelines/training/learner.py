"""What the runs that train have in common: the job that the driver hands out, and the bones of a worker's learner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import ray.data
import ray.train
import ray.train.torch
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lodisc.attention import fuse_attention
from lodisc.classifier import Classifier
from lodisc.distributed import rank, world_size
from lodisc.model import LoDisc
from lodisc.precision import autocast, fused_trains_faster, resolve_precision
from lodisc.schedules import learning_rate_at
from pipelines.data.samples import seed_of
from pipelines.run.checkpoint import last_checkpoint, read_state
from pipelines.run.config import to_dict
from pipelines.run.folder import RunFolder
from pipelines.run.progress import Style
from pipelines.tracking.journal import Entry
from pipelines.tracking.runs import RunHandle
from pipelines.training.timing import Stopwatch

Shards = Mapping[str, ray.data.DataIterator]  # what a worker reads, by name


@dataclass(frozen=True)
class Look:
    """What a look at the model has found.

    Attributes:
        scores: by the name that MLflow shows them under.
        summary: some words for the terminal.
        pictures: by the name of the artifact, as "pivots/step-00000120.png".
    """

    scores: dict[str, float]
    summary: str
    pictures: dict[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True)
class Job(ABC):
    """What the driver hands to every worker.

    Attributes:
        config: of the run.
        steps_per_epoch: whole batches in the training images.
        run: the MLflow run that the first worker writes to.
        folder: of the run.
        progress: how the user is shown where the run is.
    """

    config: Any
    steps_per_epoch: int
    run: RunHandle
    folder: RunFolder
    progress: Style

    @abstractmethod
    def learner(self, device: torch.device, shards: Shards) -> Learner:
        """Return this worker's learner, as it was at the last whole checkpoint."""

    @property
    @abstractmethod
    def task(self) -> str:
        """Return what is done, in a word or two."""

    @property
    def optim(self) -> Any:
        """Return the part of the config with epochs, batch_size and precision."""
        return self.config.optim

    @property
    def profile(self) -> int | None:
        """Return how many steps are traced."""
        return None

    @property
    def total_steps(self) -> int:
        return int(self.optim.epochs * self.steps_per_epoch)

    @property
    @abstractmethod
    def warmup_steps(self) -> int: ...

    @property
    def keep(self) -> int:
        """Return how many checkpoints stay on disk."""
        return 2

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` finished steps are a whole number of epochs."""
        return step % self.steps_per_epoch == 0

    def logs_at(self, step: int) -> bool:
        return True

    def saves_at(self, step: int) -> bool:
        return self.ends_epoch(step)

    def looks_after(self, step: int) -> list[int]:
        """Return the steps whose model is looked at once `step` steps are finished."""
        return [step] if self.ends_epoch(step) else []


class Learner(ABC):
    """Model, optimiser and stream of one worker; always `step` finished steps into the run.

    Nothing here depends on what happened before the last step: random numbers are seeded by the step, the stream
    starts at any step, so a checkpoint needs no generator states.
    """

    def __init__(self, job: Job, device: torch.device, shards: Shards, model: LoDisc | Classifier) -> None:
        self.job, self.device, self.shards = job, device, shards
        self.dtype = resolve_precision(job.optim.precision, device)
        frozen = not any(parameter.requires_grad for parameter in model.encoder.parameters())
        fuse_attention(model.encoder.vit, frozen or fused_trains_faster(self.dtype, device))
        self.model = model.to(device)
        self.replica = ray.train.torch.prepare_model(self.model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = self.make_optimizer()
        self.stopwatch = Stopwatch(device)
        self.step = 0
        self.unsent: list[Entry] = []
        self.flops_per_step: float | None = None
        saved = last_checkpoint(job.folder.path)
        if saved is not None:
            self.restore(read_state(saved))

    @abstractmethod
    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser; each of its groups of parameters holds its `peak` learning rate."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses of a batch, whose sum is minimised, and detached scalars of this worker for the curves."""

    @abstractmethod
    def guard(self, losses: Tensor) -> dict[str, Tensor]:
        """Clip the gradient, and refuse one that is no number, in all workers at the same step.

        Returns:
            More scalars for the curves.

        Raises:
            NonFiniteLossError: naming the step.
        """

    @abstractmethod
    def look(self, at: int) -> Look | None:
        """Score the model as it is, or was at step `at`. All workers call it; the first one gets what was found."""

    @abstractmethod
    def summary(self, metrics: Mapping[str, float]) -> str:
        """Return how training stands, in a few words."""

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

    def restore(self, state: dict[str, Any]) -> None:
        peaks = [group["peak"] for group in self.optimizer.param_groups]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        self.step, self.unsent = state["step"], state.get("unsent", [])

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield this worker's share of every step that is still to do, on the device; see the tasks that draw them."""
        share = self.job.optim.batch_size // world_size()
        stream = iter(self.shards["views"].iter_torch_batches(batch_size=share, device="cpu", prefetch_batches=2))
        while True:
            with self.stopwatch.phase("wait"):
                batch = next(stream, None)
            if batch is None:
                break
            sample, first = batch.pop("sample"), self.step * self.job.optim.batch_size
            assert sample.min() >= first and sample.max() < first + share * world_size(), "the stream is out of step"
            with self.stopwatch.phase("copy"):
                batch = {name: column.to(self.device) for name, column in batch.items()}
            yield batch
        assert self.step == self.job.total_steps, f"the stream ended at step {self.step} of {self.job.total_steps}"

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one optimiser step on this worker's views.

        Returns:
            Detached scalars of this worker: those of `forward` and `guard`, and `schedule/learning_rate`.

        Raises:
            NonFiniteLossError: before the parameters are touched.
        """
        # Whatever is drawn in a step is a function of the step, so that a resumed run draws the same.
        torch.manual_seed(seed_of(self.job.config.seed, self.step, rank()))
        # The operations are those of every step: they are counted in the first that this process takes.
        counter = FlopCounterMode(display=False) if self.flops_per_step is None else nullcontext()
        with counter:
            with self.stopwatch.phase("forward"), autocast(self.dtype, self.device):
                losses, metrics = self.forward(batch)
            with self.stopwatch.phase("backward"):
                losses.sum().backward()
        if isinstance(counter, FlopCounterMode):
            self.flops_per_step = float(counter.get_total_flops())
        with self.stopwatch.phase("optimizer"):
            metrics |= self.guard(losses)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(self.step, self.job.total_steps, self.job.warmup_steps, group["peak"])
            rate = torch.tensor(self.optimizer.param_groups[0]["lr"], device=self.device)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return metrics | {"schedule/learning_rate": rate}
