"""The config of a run that trains a classifier with labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lodisc.bounds import bounds, require
from lodisc.config import Precision
from pipelines.run.config import ComputeConfig, PretrainConfig, TrackingConfig, require_name
from pipelines.run.folder import require_free

# The protocol's learning rate for a batch of 256, 0.5, and two on either side.
LINEAR_RATES = (0.05, 0.15, 0.5, 1.5, 5.0)
FULL_RATE = 3e-4
FULL_WEIGHT_DECAY = 0.1
FULL_WARMUP = 0.05  # of the run
MODES = ("linear", "full")


def refuse_early(config: PretrainConfig) -> None:
    """Refuse a pretraining by what is on disk, in a second, before Ray starts.

    Raises:
        ValueError: there are no such images, the name is taken or has nothing to resume, or the storage takes no files.
    """
    from pipelines.data.sources import find_source

    for name, source in (("data.images", config.data.images), ("data.eval_images", config.data.eval_images)):
        if source is not None:
            try:
                find_source(source)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    require_free(config)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Training with labels: a linear classifier on a pretrained encoder, or the encoder with it.

    Attributes:
        checkpoint: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        images: labelled training images, `SRC` or `SRC@SPLIT`.
        eval_images: labelled images to test on; nothing is chosen by them.
        mode: linear trains a classifier on the frozen encoder by SGD, full trains all of it by AdamW.
        epochs: passes over the training images.
        batch_size: global batch, over all workers.
        learning_rates: peak learning rates for a batch of 256. linear trains a classifier at each, and takes the one
            that is best on a held-out fifth of the training images; full takes one. None is 0.05 0.15 0.5 1.5 5 for
            linear and 3e-4 for full.
        weight_decay: None is 0 for linear, and 0.1 for full, where it spares biases, norms and position embeddings.
        crop_scale: smallest and largest area of the random resized crop, as a fraction of the image.
        precision: number format of the forward and backward pass; auto is bf16 where the hardware has it.
        compute: workers and devices.
        tracking: where MLflow keeps the run.
        name: the run's name and folder; None makes one from the time.
        seed: fixes initial weights, held-out images, order of images and views.
        storage: folder or URI that holds the runs; every node must reach it.
        resume: continue the run of this name from its last checkpoint.
    """

    checkpoint: str
    images: str
    eval_images: str
    mode: Literal["linear", "full"] = "linear"
    epochs: int = 100
    batch_size: int = 256
    learning_rates: tuple[float, ...] | None = None
    weight_decay: float | None = None
    crop_scale: tuple[float, float] = (0.08, 1.0)
    precision: Precision = "auto"
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    name: str | None = None
    seed: int = 0
    storage: str = "runs"
    resume: bool = False

    def __post_init__(self) -> None:
        from pipelines.data.sources import find_source
        from pipelines.run.checkpoint import find_checkpoint

        low, high = self.crop_scale
        workers = self.compute.workers
        require(self.mode in MODES, f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        bounds(self, epochs="at least 1", batch_size="at least 1", weight_decay="at least 0", seed="at least 0")
        require_name(self.name, self.resume)
        require(
            self.batch_size % workers == 0,
            f"batch_size ({self.batch_size}) must be a multiple of compute.workers {workers}",
        )
        require(
            len(set(self.rates)) == len(self.rates) > 0 and min(self.rates) > 0,
            f"learning_rates must be different and > 0, got {self.rates}",
        )
        require(
            self.mode != "full" or len(self.rates) == 1,
            f"learning_rates: full trains one encoder, at one rate; got {self.rates}",
        )
        require(0 < low <= high <= 1, f"crop_scale must satisfy 0 < smallest <= largest <= 1, got {self.crop_scale}")
        require(
            self.eval_images != self.images,
            f"eval_images must hold other images than images ({self.images}): the classifier has seen those",
        )
        find_checkpoint(self.checkpoint)
        find_source(self.images)
        find_source(self.eval_images)

    @property
    def rates(self) -> tuple[float, ...]:
        """The peak learning rates for a batch of 256."""
        if self.learning_rates is not None:
            return tuple(self.learning_rates)
        return (FULL_RATE,) if self.mode == "full" else LINEAR_RATES

    @property
    def decay(self) -> float:
        """The weight decay."""
        if self.weight_decay is not None:
            return self.weight_decay
        return FULL_WEIGHT_DECAY if self.mode == "full" else 0.0
