"""What pretraining learns in a step, and what is looked at: scores of the encoder, its pivots, nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import ray.data
import torch
from PIL import Image
from torch import Tensor

from lodisc.distributed import rank
from lodisc.encoder import Encoder
from lodisc.model import LoDisc
from lodisc.normalise import normalise
from lodisc.pivots import keep_patches, pivot_scores
from lodisc.schedules import momentum_at
from pipelines.evaluation.evaluators import Seen, score
from pipelines.evaluation.features import Features, embed_decoded
from pipelines.pictures import draw, neighbour_sheet, pivot_sheet
from pipelines.run.causes import NonFiniteLossError
from pipelines.run.config import PretrainConfig
from pipelines.training.learner import Job, Learner, Look, Shards

PICTURES = 8
NEIGHBOURS = 6
# The linear probe fits a classifier each time: `lodisc evaluate` runs it, training does not wait for it.
PROBES = ("knn", "retrieval", "geometry")


@dataclass(frozen=True)
class PretrainJob(Job):
    """A pretraining run."""

    config: PretrainConfig

    def learner(self, device: torch.device, shards: Shards) -> PretrainLearner:
        return PretrainLearner(self, device, shards)

    @property
    def task(self) -> str:
        return "pretraining"

    @property
    def profile(self) -> int | None:
        return self.config.profile

    @property
    def warmup_steps(self) -> int:
        return round(self.config.optim.warmup_epochs * self.steps_per_epoch)

    @property
    def keep(self) -> int:
        return self.config.checkpoint.keep

    def logs_at(self, step: int) -> bool:
        return step % self.config.evaluation.log_every_steps == 0

    def saves_at(self, step: int) -> bool:
        every = self.config.checkpoint.every_steps
        return self.ends_epoch(step) or (every is not None and step % every == 0)

    def looks_after(self, step: int) -> list[int]:
        every = self.config.evaluation.every_epochs * self.steps_per_epoch
        start = [0] if step == 1 else []
        return [*start, step] if step % every == 0 or step == self.total_steps else start


class PretrainLearner(Learner):
    """Learns the encoder from pairs of views, by both branches of LoDisc.

    Of its shards, `gallery` and, where there are any, `held_out` are images to score on.
    """

    job: PretrainJob
    model: LoDisc

    def __init__(self, job: PretrainJob, device: torch.device, shards: Shards) -> None:
        self.source = shards.get("held_out") or shards["gallery"]
        torch.manual_seed(job.config.seed)
        super().__init__(job, device, shards, LoDisc(job.config.encoder, job.config.model))

    def make_optimizer(self) -> torch.optim.Optimizer:
        optim = self.job.config.optim
        group = {"params": self.parameters, "peak": optim.base_lr * optim.batch_size / 256}
        return torch.optim.AdamW([group], lr=0.0, weight_decay=optim.weight_decay, fused=True)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LoDisc.forward` for the loss and the names of the scalars."""
        momentum = momentum_at(self.step, self.job.total_steps, self.job.config.model.momentum)
        self.model.update_momentum(momentum)
        loss, metrics = self.replica(normalise(batch["view1"]), normalise(batch["view2"]))
        return loss, metrics | {"schedule/momentum": torch.tensor(momentum, device=self.device)}

    def guard(self, losses: Tensor) -> dict[str, Tensor]:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.job.config.optim.clip_norm or float("inf"))
        # The gradient is the same on all workers, so all end here or none does; a loss that is no number makes it one.
        if not torch.isfinite(norm):
            raise NonFiniteLossError(
                f"step {self.step + 1}: loss {losses.item():g}, gradient norm {norm.item():g}; no weight took it. "
                "Lower optim.base_lr, set optim.clip_norm, lengthen optim.warmup_epochs, or set "
                "optim.precision to fp32."
            )
        return {"gradient/norm": norm}

    def summary(self, metrics: Mapping[str, float]) -> str:
        return f"loss {metrics['loss']:.4f}  contrast top-1 {metrics['contrastive/top1']:.1f} %"

    def look(self, at: int) -> Look | None:
        """Score the encoder and draw where its pivots are; the other workers wait for the first at the next step.

        The look at the start is taken after the first step. The momentum encoder is updated before a step, so after the
        first one it still has the weights that the encoder began with.
        """
        if rank() != 0:
            return None
        assert at == self.step or (at, self.step) == (0, 1), "later the momentum encoder has moved"
        encoder = self.model.encoder if at else self.model.momentum_encoder
        gallery = self._embed(encoder, self.shards["gallery"])
        test = self._embed(encoder, self.shards["held_out"]) if "held_out" in self.shards else None
        other_view = self._embed(encoder, self.source, "view").features
        scores = score(Seen(test or gallery, gallery if test else None, other_view), PROBES)
        pictures = {f"pivots/step-{at:08d}.png": self._pivots()}
        if at == self.job.total_steps:
            pictures["neighbours.png"] = self._neighbours(test or gallery)
        summary = "  ".join(f"{name} {value:.1f}" for name, value in scores.items())
        return Look({f"eval/{name}": value for name, value in scores.items()}, f": {summary}", pictures)

    def _embed(self, encoder: Encoder, shard: ray.data.DataIterator, view: str = "image") -> Features:
        encoder.eval()
        features = embed_decoded(encoder, shard.iter_batches(batch_size=128), view, self.device, self.dtype)
        encoder.train()
        return features

    @torch.inference_mode()
    def _pivots(self) -> Image.Image:
        images = next(iter(self.source.iter_batches(batch_size=PICTURES)))["image"]
        encoder = self.model.momentum_encoder
        encoder.eval()
        _, scores = pivot_scores(encoder, normalise(torch.tensor(images).to(self.device)), "fused")
        encoder.train()
        kept = keep_patches(scores, self.job.config.model.mask_ratio)
        return draw(pivot_sheet(images, scores.cpu(), kept.cpu(), encoder.grid))

    def _neighbours(self, features: Features) -> Image.Image:
        unit = torch.nn.functional.normalize(features.features, dim=1)
        queries = torch.linspace(0, len(unit) - 1, min(PICTURES, len(unit))).long()
        similarity = unit[queries] @ unit.T
        similarity[torch.arange(len(queries)), queries] = -1
        best, neighbours = similarity.topk(min(NEIGHBOURS, len(unit) - 1), dim=1)
        images = _rows(self.source, torch.cat([queries, neighbours.flatten()]).tolist())
        names = features.labels
        sheet = neighbour_sheet(
            np.stack([images[i] for i in queries.tolist()]),
            np.stack([[images[i] for i in row] for row in neighbours.tolist()]),
            [names[i] for i in queries.tolist()] if names else None,
            [[names[i] for i in row] for row in neighbours.tolist()] if names else None,
            best.numpy(),
        )
        return draw(sheet)


def _rows(shard: ray.data.DataIterator, wanted: list[int]) -> dict[int, np.ndarray]:
    """Return the images at the wanted places of the dataset."""
    found: dict[int, np.ndarray] = {}
    start, missing = 0, set(wanted)
    for batch in shard.iter_batches(batch_size=128):
        stop = start + len(batch["image"])
        found |= {i: batch["image"][i - start] for i in missing if start <= i < stop}
        start = stop
    return found
