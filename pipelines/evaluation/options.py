"""The options of `lodisc evaluate`, to be had without torch and Ray, which take seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lodisc.bounds import bounds
from pipelines.evaluation.scores import NEED_GALLERY, PROBES
from pipelines.run.files import require_writable


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to score, and on which images.

    Attributes:
        checkpoint: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        images: the images to score on, `SRC` or `SRC@SPLIT`.
        gallery: other images, with labels, for k-NN to vote with and the linear probe to learn from; None leaves both
            out.
        untrained: score the encoder as it was before the first step.
        batch_size: images a forward pass.
        probe: score by one probe alone: knn, retrieval, linear or geometry; None scores by all that the labels allow.
        output: JSON file for the scores and the most frequent confusions of classes.
        tracking_uri: MLflow store of the run; None takes the one that the checkpoint names.
    """

    checkpoint: str
    images: str
    gallery: str | None = None
    untrained: bool = False
    batch_size: int = 64
    probe: str | None = None
    output: str | None = None
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        from pipelines.data.sources import find_source
        from pipelines.run.checkpoint import find_checkpoint

        bounds(self, batch_size="at least 1")
        if self.gallery == self.images:
            raise ValueError(f"gallery must hold other images than images ({self.images}): each would find itself")
        if self.probe is not None and self.probe not in PROBES:
            raise ValueError(f"probe: unknown {self.probe!r}; there are {', '.join(PROBES)}")
        if self.probe in NEED_GALLERY and self.gallery is None:
            raise ValueError(f"probe: {self.probe} learns from a gallery of other labelled images; name one by gallery")
        if self.output is not None and Path(self.output).is_dir():
            raise ValueError(f"output must be a JSON file, {self.output} is a folder")
        find_checkpoint(self.checkpoint)
        find_source(self.images)
        if self.gallery is not None:
            find_source(self.gallery)
        if self.output is not None:
            require_writable("output", self.output)

    @property
    def probes(self) -> tuple[str, ...]:
        return PROBES if self.probe is None else (self.probe,)
