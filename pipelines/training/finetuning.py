"""What training with labels learns in a step, and how its classifiers are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor

from lodisc.classifier import Classifier, head_losses, hits
from lodisc.distributed import average, rank, world_size
from lodisc.normalise import normalise
from lodisc.precision import autocast
from pipelines.run.causes import NonFiniteLossError
from pipelines.run.checkpoint import load_encoder
from pipelines.training.learner import Job, Learner, Look, Shards
from pipelines.training.options import FULL_WARMUP, FinetuneConfig

SCORING_BATCH = 128


@dataclass(frozen=True)
class FinetuneJob(Job):
    """A run that trains a classifier.

    Attributes:
        classes: how many there are.
        held_out: the share of the training images by which a learning rate is chosen; 0 where there is only one.
    """

    config: FinetuneConfig
    classes: int
    held_out: float

    def learner(self, device: torch.device, shards: Shards) -> ClassifierLearner:
        return ClassifierLearner(self, device, shards)

    @property
    def task(self) -> str:
        return "linear classifier" if self.config.mode == "linear" else "fine-tuning"

    @property
    def optim(self) -> FinetuneConfig:
        return self.config

    @property
    def warmup_steps(self) -> int:
        return 0 if self.config.mode == "linear" else round(FULL_WARMUP * self.total_steps)

    @property
    def chooses(self) -> bool:
        """Whether there is a learning rate to choose."""
        return len(self.config.rates) > 1


class ClassifierLearner(Learner):
    """Learns classifiers, one a learning rate, from every training image.

    Where there is a rate to choose, each has a scout: a second head of the same rate that never learns from the
    held-out images, so that they can judge it. Of its shards, `test` and, with scouts, `held_out` are images to score.
    """

    job: FinetuneJob
    model: Classifier

    def __init__(self, job: FinetuneJob, device: torch.device, shards: Shards) -> None:
        config = job.config
        encoder, _ = load_encoder(config.checkpoint)
        torch.manual_seed(config.seed)
        heads = len(config.rates) * (2 if job.chooses else 1)
        model = Classifier(encoder, job.classes, heads, frozen=config.mode == "linear")
        self.chosen = 0
        self.embedded: dict[str, list[tuple[Tensor, Tensor]]] = {}
        super().__init__(job, device, shards, model)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return classifier_optimizer(self.job.config, self.model)

    def state(self) -> dict[str, Any]:
        """Return all that a later worker needs, and which head is the result."""
        return super().state() | {"chosen": self.chosen}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.chosen = state["chosen"]

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses are those of the heads; the scalars are loss and top1 of every learning rate."""
        rates = len(self.job.config.rates)
        logits = self.replica(normalise(batch["view"]))
        losses = head_losses(logits, batch["target"], image_weights(batch["held_out"], rates, self.job.held_out))
        top1 = 100 * hits(logits.detach(), batch["target"])[:, 0] / len(batch["target"])
        metrics = {self.curve("loss", number): losses[number].detach() for number in range(rates)}
        return losses, metrics | {self.curve("train/top1", number): top1[number] for number in range(rates)}

    def guard(self, losses: Tensor) -> dict[str, Tensor]:
        """Refuse an encoder that diverges; of classifiers beside each other some may, as long as one does not."""
        finite = torch.isfinite(average(losses.detach()))  # so that all workers end here or none does
        if not self.model.frozen:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            finite &= torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        if not finite.any():
            raise NonFiniteLossError(
                f"step {self.step + 1}: loss {losses[0].item():g}, or its gradient, is no number. Lower "
                "learning_rates, or set precision to fp32."
            )
        return {}

    def summary(self, metrics: Mapping[str, float]) -> str:
        return f"loss {min(value for name, value in metrics.items() if name.split('/')[0] == 'loss'):.4f}"

    def curve(self, metric: str, number: int) -> str:
        """Return the name of a learning rate's metric."""
        return f"{metric}/{self.job.config.rates[number]:g}" if self.job.chooses else metric

    def look(self, at: int) -> Look:
        """Choose the head by the held-out images, and score it on the test images, which all workers share.

        Returns:
            In percent: eval/top1 and eval/top5; and of every learning rate that can be chosen held_out/top1/RATE.
        """
        rates, scores, choice = self.job.config.rates, {}, ""
        if self.job.chooses:
            scouts = self._accuracy("held_out")[len(rates) :, 0].tolist()
            self.chosen = scouts.index(max(scouts))
            scores = {self.curve("held_out/top1", number): value for number, value in enumerate(scouts)}
            choice = f", learning rate {rates[self.chosen]:g}"
        top1, top5 = self._accuracy("test")[self.chosen].tolist()
        scores |= {"eval/top1": top1, "eval/top5": top5}
        return Look(scores, f"{choice}: eval/top1 {top1:.1f}  eval/top5 {top5:.1f}")

    @torch.inference_mode()
    def _accuracy(self, name: str) -> Tensor:
        """Return top-1 and top-5 of every head, (heads, 2), in percent."""
        total = torch.zeros(len(self.model.heads) + 1, 2, device=self.device)
        for features, targets in self._features(name):
            total[:-1] += hits(self.model.classify(features), targets)
            total[-1] += len(targets)
        total = average(total)
        return 100 * total[:-1] / total[-1]

    def _features(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return this worker's share of the images as batches of features and targets."""
        if name in self.embedded:
            return self.embedded[name]
        self.model.eval()
        found = []
        for number, batch in enumerate(self.shards[name].iter_torch_batches(batch_size=SCORING_BATCH, device="cpu")):
            if number % world_size() == rank():
                images = normalise(batch["view"].to(self.device))
                with autocast(self.dtype, self.device):
                    features = self.model.features(images)
                found.append((features, batch["target"].to(self.device)))
        self.model.train()
        if self.model.frozen:  # They will be the same at the next look.
            self.embedded[name] = found
        return found


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


def classifier_optimizer(config: FinetuneConfig, model: Classifier) -> torch.optim.Optimizer:
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
