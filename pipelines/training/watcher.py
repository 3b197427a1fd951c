"""Watch a run from its first worker: curves every step; scores and pictures every few epochs."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import ray.data
import torch
from PIL import Image

from lodisc.encoder import Encoder
from lodisc.normalise import normalise
from lodisc.pivots import keep_patches, pivot_scores
from pipelines.evaluation.evaluate import score
from pipelines.evaluation.features import Features, embed_decoded
from pipelines.pictures import draw, neighbour_sheet, pivot_sheet
from pipelines.run.progress import Progress
from pipelines.tracking.tracker import Tracker
from pipelines.training.timing import StepTrace, Throughput, peak_flops

if TYPE_CHECKING:
    from pipelines.training.loop import Learner, TrainJob

PICTURES = 8
NEIGHBOURS = 6
# The linear probe fits a classifier each time: `lodisc evaluate` runs it, training does not wait for it.
PROBES = ("knn", "retrieval", "geometry")


class Watcher:
    """The first worker's second duty. It reads the learner and never changes it."""

    def __init__(self, job: TrainJob, learner: Learner, shards: Mapping[str, ray.data.DataIterator]) -> None:
        self.job, self.learner = job, learner
        self.tracker = Tracker(job.run, learner.unsent)
        self.progress = Progress(job.total_steps, job.steps_per_epoch, learner.step, job.progress)
        self.throughput = Throughput(job.config.optim.batch_size, peak_flops(learner.device, learner.dtype))
        done, profiled = learner.step, job.config.profile
        self.trace = StepTrace(profiled, done, self.tracker, self.progress.say) if profiled else None
        if done:
            self.progress.say(f"from the checkpoint of step {done}")
        self.gallery, self.held_out = shards["gallery"], shards.get("held_out")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.trace:
            self.trace.close()
        self.progress.close()
        self.tracker.close()

    def log(self, metrics: dict[str, float]) -> None:
        """Add a point to the training curves."""
        step = self.learner.step
        steps = step - self.throughput.step
        metrics |= {f"time/{phase}": spent / steps for phase, spent in self.learner.stopwatch.seconds().items()}
        metrics |= self.throughput.rates(step, self.learner.flops_per_step or 0.0)
        self.tracker.log_metrics(metrics | {"epoch": step / self.job.steps_per_epoch}, step)
        self.progress.show(step, _summary(metrics))

    def end_step(self) -> None:
        if self.trace:
            self.trace.step()

    def look_back(self) -> None:
        """Score the encoder as it was before the first step, and draw where its pivots were; call it after that step.

        So the first step need not wait. The momentum encoder is updated before a step, and after the first one it still
        has the weights that the encoder began with.
        """
        assert self.learner.step == 1, "later the momentum encoder has moved"
        self._look(0, self.learner.model.momentum_encoder)
        self._restart()

    def look(self) -> dict[str, float]:
        """Score the encoder as it is and draw where its pivots are.

        Returns:
            The scores, as `score` names them with `eval/` before.
        """
        step = self.learner.step
        scores, features = self._look(step, self.learner.model.encoder)
        if step == self.job.total_steps:
            self.tracker.log_figure(self._neighbours(features, self.held_out or self.gallery), "neighbours.png")
        self._restart()
        return scores

    def _look(self, step: int, encoder: Encoder) -> tuple[dict[str, float], Features]:
        """Log scores and pivots, and return the scores and the features that were scored."""
        gallery = self._embed(encoder, self.gallery)
        test = self._embed(encoder, self.held_out) if self.held_out else None
        source = self.held_out or self.gallery
        other_view = self._embed(encoder, source, "view").features
        scores = score(test or gallery, gallery if test else None, probes=PROBES, other_view=other_view)
        named = {f"eval/{name}": value for name, value in scores.items()}
        self.tracker.log_metrics(named, step)
        shown = "  ".join(f"{name} {value:.1f}" for name, value in scores.items())
        self.progress.say(f"epoch {step // self.job.steps_per_epoch}: {shown}")
        self.tracker.log_figure(self._pivots(source), f"pivots/step-{step:08d}.png")
        return named, test or gallery

    def _restart(self) -> None:
        """Leave what was looked at here out of both meters."""
        self.learner.stopwatch.seconds()
        self.throughput.restart(self.learner.step)

    def _embed(self, encoder: Encoder, shard: ray.data.DataIterator, view: str = "image") -> Features:
        encoder.eval()
        batches = shard.iter_batches(batch_size=128)
        features = embed_decoded(encoder, batches, view, self.learner.device, self.learner.dtype)
        encoder.train()
        return features

    @torch.inference_mode()
    def _pivots(self, shard: ray.data.DataIterator) -> Image.Image:
        images = next(iter(shard.iter_batches(batch_size=PICTURES)))["image"]
        model = self.learner.job.config.model
        momentum_encoder = self.learner.model.momentum_encoder
        momentum_encoder.eval()
        _, scores = pivot_scores(momentum_encoder, normalise(torch.tensor(images).to(self.learner.device)), "fused")
        momentum_encoder.train()
        kept = keep_patches(scores, model.mask_ratio)
        return draw(pivot_sheet(images, scores.cpu(), kept.cpu(), momentum_encoder.grid))

    def _neighbours(self, features: Features, shard: ray.data.DataIterator) -> Image.Image:
        unit = torch.nn.functional.normalize(features.features, dim=1)
        queries = torch.linspace(0, len(unit) - 1, min(PICTURES, len(unit))).long()
        similarity = unit[queries] @ unit.T
        similarity[torch.arange(len(queries)), queries] = -1
        best, neighbours = similarity.topk(min(NEIGHBOURS, len(unit) - 1), dim=1)
        images = _rows(shard, torch.cat([queries, neighbours.flatten()]).tolist())
        names = features.labels
        sheet = neighbour_sheet(
            np.stack([images[i] for i in queries.tolist()]),
            np.stack([[images[i] for i in row] for row in neighbours.tolist()]),
            [names[i] for i in queries.tolist()] if names else None,
            [[names[i] for i in row] for row in neighbours.tolist()] if names else None,
            best.numpy(),
        )
        return draw(sheet)


def _summary(metrics: dict[str, float]) -> str:
    return (
        f"loss {metrics['loss']:.4f}  contrast top-1 {metrics['contrastive/top1']:.1f} %  "
        f"{metrics['throughput/images_per_second']:.0f} images/s"
    )


def _rows(shard: ray.data.DataIterator, wanted: list[int]) -> dict[int, np.ndarray]:
    """Return the images at the wanted places of the dataset."""
    found: dict[int, np.ndarray] = {}
    start, missing = 0, set(wanted)
    for batch in shard.iter_batches(batch_size=128):
        stop = start + len(batch["image"])
        found |= {i: batch["image"][i - start] for i in missing if start <= i < stop}
        start = stop
    return found
