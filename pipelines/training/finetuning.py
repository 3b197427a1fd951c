"""The loop of training with labels, as every worker runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray.data
import ray.train
import ray.train.torch
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor

from lodisc.attention import fuse_attention
from lodisc.classifier import Classifier, head_losses, hits
from lodisc.distributed import average, rank, world_size
from lodisc.normalise import normalise
from lodisc.precision import autocast, fused_trains_faster, resolve_precision
from lodisc.schedules import learning_rate_at
from pipelines.run.checkpoint import load_encoder, read_state
from pipelines.run.config import to_dict
from pipelines.run.folder import RunFolder
from pipelines.run.progress import Progress, Style
from pipelines.tracking.journal import Entry
from pipelines.tracking.runs import RunHandle
from pipelines.tracking.tracker import Tracker
from pipelines.training.loop import NonFiniteLossError, report_checkpoint, synchronised
from pipelines.training.options import FULL_WARMUP, FinetuneConfig
from pipelines.training.placement import use_worker_cpus
from pipelines.training.preemption import Summons
from pipelines.training.timing import Throughput

SCORING_BATCH = 128


@dataclass(frozen=True)
class FinetuneJob:
    """What the driver hands to every worker.

    Attributes:
        config: of the run.
        classes: how many there are.
        held_out: the share of the training images by which a learning rate is chosen; 0 where there is only one.
        steps_per_epoch: whole batches in the training images.
        run: the MLflow run that the first worker writes to.
        folder: of the run.
        progress: how the user is shown where the run is.
    """

    config: FinetuneConfig
    classes: int
    held_out: float
    steps_per_epoch: int
    run: RunHandle
    folder: RunFolder
    progress: Style

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def chooses(self) -> bool:
        """Whether there is a learning rate to choose."""
        return len(self.config.rates) > 1


def finetune_worker(job: FinetuneJob, shards: Mapping[str, ray.data.DataIterator]) -> None:
    """Train from the last registered checkpoint, or from the pretrained encoder, to the last step.

    Args:
        job: of the run.
        shards: `views`, this worker's share of the stream; `test` and, where there are any, `held_out`, to score on.

    Raises:
        NonFiniteLossError: training diverged, in all workers at the same step.
    """
    device = ray.train.torch.get_device()
    use_worker_cpus(job.config.compute, device)
    learner = ClassifierLearner(job, device, shards["views"])
    scorer = Scorer(learner, shards)
    watching = FinetuneWatcher(job, learner) if rank() == 0 else nullcontext()
    with watching as watcher, Summons(job.folder, device) as summons:
        for batch in learner.batches():
            means = synchronised(learner.train_step(batch))
            if watcher:
                watcher.log(learner.step, means)
            ends_epoch = learner.step % job.steps_per_epoch == 0
            scores = scorer.scores() if ends_epoch else {}
            if watcher and ends_epoch:
                watcher.log_scores(learner.step, scores, job.config.rates[learner.chosen])
            leaves = summons.heard() and learner.step < job.total_steps
            if leaves or ends_epoch:
                epoch = learner.step / job.steps_per_epoch
                tracker = watcher.tracker if watcher else None
                report_checkpoint(learner.state, {"step": learner.step, "epoch": epoch, **scores}, tracker)
            if leaves:
                return


class ClassifierLearner:
    """Model, optimiser and stream of one worker; always `step` finished steps into the run.

    The first heads, one a learning rate, learn from every training image. Where there is a rate to choose, each has a
    scout: a second head of the same rate that never learns from the held-out images, so that they can judge it.
    """

    def __init__(self, job: FinetuneJob, device: torch.device, shard: ray.data.DataIterator) -> None:
        config = job.config
        self.job, self.device, self.shard = job, device, shard
        self.dtype = resolve_precision(config.precision, device)
        encoder, _ = load_encoder(config.checkpoint)
        torch.manual_seed(config.seed)
        heads = len(config.rates) * (2 if job.chooses else 1)
        self.model = Classifier(encoder, job.classes, heads, frozen=config.mode == "linear").to(device)
        fuse_attention(encoder.vit, self.model.frozen or fused_trains_faster(self.dtype, device))
        self.replica = ray.train.torch.prepare_model(self.model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(config, self.model)
        self.step, self.chosen = 0, 0
        self.unsent: list[Entry] = []
        saved = ray.train.get_checkpoint()
        if saved is not None:
            state = read_state(saved)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.chosen, self.unsent = state["step"], state["chosen"], state.get("unsent", [])

    def state(self) -> dict[str, Any]:
        """Return all that a later worker needs, and which head is the result."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "chosen": self.chosen,
            "config": to_dict(self.job.config),
        }

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield this worker's share of every step that is still to do, on the device; see `DrawLabelled`."""
        share = self.job.config.batch_size // world_size()
        for batch in self.shard.iter_torch_batches(batch_size=share, device="cpu", prefetch_batches=2):
            first = self.step * self.job.config.batch_size
            sample = batch["sample"]
            assert sample.min() >= first and sample.max() < first + share * world_size(), "the stream is out of step"
            yield {name: column.to(self.device) for name, column in batch.items()}
        assert self.step == self.job.total_steps, f"the stream ended at step {self.step} of {self.job.total_steps}"

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one optimiser step on this worker's views.

        Returns:
            Detached scalars of this worker: loss and top1 of every learning rate, and the schedule.

        Raises:
            NonFiniteLossError: before the parameters are touched, naming the step.
        """
        warmup = 0 if self.model.frozen else round(FULL_WARMUP * self.job.total_steps)
        shape = learning_rate_at(self.step, self.job.total_steps, warmup, 1.0)
        with autocast(self.dtype, self.device):
            logits = self.replica(normalise(batch["view"]))
        weights = image_weights(batch["held_out"], len(self.job.config.rates), self.job.held_out)
        losses = head_losses(logits, batch["target"], weights)
        losses.sum().backward()
        self._require_finite(losses)
        for group in self.optimizer.param_groups:
            group["lr"] = shape * group["peak"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        metrics = {"schedule/share_of_peak": torch.tensor(shape, device=self.device)}
        top1 = 100 * hits(logits.detach(), batch["target"])[:, 0] / len(batch["target"])
        for number, _ in enumerate(self.job.config.rates):
            metrics[self.curve("loss", number)] = losses[number].detach()
            metrics[self.curve("train/top1", number)] = top1[number]
        return metrics

    def curve(self, metric: str, number: int) -> str:
        """Return the name of a learning rate's metric."""
        return f"{metric}/{self.job.config.rates[number]:g}" if self.job.chooses else metric

    def _require_finite(self, losses: Tensor) -> None:
        """Refuse an encoder that diverges; of classifiers beside each other some may, as long as one does not."""
        finite = torch.isfinite(average(losses.detach()))  # so that all workers end here or none does
        if not self.model.frozen:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            finite &= torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        if not finite.any():
            raise NonFiniteLossError(
                f"step {self.step}: loss {losses[0].item():g}, or its gradient, is no number. The last checkpoint is "
                "from before. Lower learning_rates, or set precision to fp32."
            )


def image_weights(held_out: Tensor, rates: int, share: float) -> Tensor:
    """Return how much each image counts to each head, (heads, B) float32, on average 1.

    Args:
        held_out: (B,) bool.
        rates: how many learning rates there are.
        share: of the training images that are held out; 0 where no rate has a scout.
    """
    every = torch.ones(rates, len(held_out), device=held_out.device)
    # By the share of the whole set, not of the batch: that is the same on every worker.
    return torch.cat([every, every * ~held_out / (1 - share)]) if share else every


def _optimizer(config: FinetuneConfig, model: Classifier) -> torch.optim.Optimizer:
    """Return the optimiser, whose groups of parameters hold their `peak` learning rate."""
    peaks = [rate * config.batch_size / 256 for rate in config.rates]
    if config.mode == "full":
        spared = [f"encoder.vit.{name}" for name in model.encoder.vit.no_weight_decay()]
        groups = param_groups_weight_decay(model, config.decay, no_weight_decay_list=spared)
        return torch.optim.AdamW([{**group, "peak": peaks[0]} for group in groups], lr=0.0, fused=True)
    groups = [
        {"params": list(head.parameters()), "peak": peaks[number % len(peaks)]}
        for number, head in enumerate(model.heads)
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=config.decay)


class Scorer:
    """Scores the classifiers on the evaluation views of images, which the workers share among them."""

    def __init__(self, learner: ClassifierLearner, shards: Mapping[str, ray.data.DataIterator]) -> None:
        self.learner, self.shards = learner, shards
        self.embedded: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def scores(self) -> dict[str, float]:
        """Choose the head by the held-out images, and score it on the test images. All workers call it.

        Returns:
            In percent: eval/top1 and eval/top5; and of every learning rate that can be chosen held_out/top1/RATE.
        """
        learner, rates = self.learner, self.learner.job.config.rates
        scores = {}
        if learner.job.chooses:
            scouts = self._accuracy("held_out")[len(rates) :, 0].tolist()
            learner.chosen = scouts.index(max(scouts))
            scores = {learner.curve("held_out/top1", number): value for number, value in enumerate(scouts)}
        top1, top5 = self._accuracy("test")[learner.chosen].tolist()
        return {**scores, "eval/top1": top1, "eval/top5": top5}

    @torch.inference_mode()
    def _accuracy(self, name: str) -> Tensor:
        """Return top-1 and top-5 of every head, (heads, 2), in percent."""
        model, total = self.learner.model, torch.zeros(len(self.learner.model.heads) + 1, 2, device=self.learner.device)
        for features, targets in self._features(name):
            total[:-1] += hits(model.classify(features), targets)
            total[-1] += len(targets)
        total = average(total)
        return 100 * total[:-1] / total[-1]

    def _features(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return this worker's share of the images as batches of features and targets."""
        model = self.learner.model
        if name in self.embedded:
            return self.embedded[name]
        model.eval()
        found = []
        for number, batch in enumerate(self.shards[name].iter_torch_batches(batch_size=SCORING_BATCH, device="cpu")):
            if number % world_size() == rank():
                images = normalise(batch["view"].to(self.learner.device))
                with autocast(self.learner.dtype, self.learner.device):
                    features = model.features(images)
                found.append((features, batch["target"].to(self.learner.device)))
        model.train()
        if model.frozen:  # They will be the same at the next look.
            self.embedded[name] = found
        return found


class FinetuneWatcher:
    """The first worker's second duty: curves to MLflow, progress to the terminal."""

    def __init__(self, job: FinetuneJob, learner: ClassifierLearner) -> None:
        self.job, step = job, learner.step
        self.tracker = Tracker(job.run, learner.unsent)
        task = "linear classifier" if job.config.mode == "linear" else "fine-tuning"
        self.progress = Progress(job.total_steps, job.steps_per_epoch, step, job.progress, task)
        self.throughput = Throughput(job.config.batch_size, peak=1.0)
        self.throughput.restart(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.close()
        self.tracker.close()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a point to the training curves."""
        rate = self.throughput.rates(step, 0.0)["throughput/images_per_second"]
        curves = {"throughput/images_per_second": rate, "epoch": step / self.job.steps_per_epoch}
        self.tracker.log_metrics({**metrics, **curves}, step)
        losses = [value for name, value in metrics.items() if name.split("/")[0] == "loss"]
        self.progress.show(step, f"loss {min(losses):.4f}  {rate:.0f} images/s")

    def log_scores(self, step: int, scores: dict[str, float], rate: float) -> None:
        """Add a point to the curves of scores, and print those of the classifier with the learning rate."""
        self.tracker.log_metrics(scores, step)
        shown = "  ".join(f"{name} {value:.1f}" for name, value in scores.items() if name.startswith("eval/"))
        chosen = f", learning rate {rate:g}" if self.job.chooses else ""
        self.progress.say(f"epoch {step // self.job.steps_per_epoch}{chosen}: {shown}")
        self.throughput.restart(step)
