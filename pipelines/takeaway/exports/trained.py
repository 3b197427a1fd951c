"""A trained encoder and all that is known of it: what every export writes down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lodisc.encoder import Encoder
from lodisc.views import eval_short_side
from pipelines.run.checkpoint import load_encoder
from pipelines.tracking.store import is_missing, open_client

SCORES = ("eval/", "test/")  # what `pretrain` and `evaluate` log
FINGERPRINT = "dataset."


@dataclass(frozen=True)
class Trained:
    """An encoder to take away.

    Attributes:
        encoder: in evaluation mode, on the CPU.
        config: of the run, nested plain values.
        step: finished steps.
        run_id: the MLflow run.
        fingerprints: MLflow tags that tell which images it was trained on; empty where they are not known.
        scores: MLflow metrics of this very step; empty where there are none.
        license: of the weights, as the user names it; None where the user did not.
    """

    encoder: Encoder
    config: dict[str, Any]
    step: int
    run_id: str
    fingerprints: dict[str, str]
    scores: dict[str, float]
    license: str | None = None

    @property
    def arch(self) -> str:
        """The architecture in timm, without the tag of pretrained weights."""
        name: str = self.config["encoder"]["arch"]
        return name.split(".")[0]

    @property
    def image_size(self) -> int:
        size: int = self.config["encoder"]["image_size"]
        return size

    @property
    def patch_size(self) -> int:
        return self.encoder.patch_size[0]

    @property
    def depth(self) -> int:
        return len(self.encoder.vit.blocks)

    @property
    def short_side(self) -> int:
        """To how many pixels an image's short side is resized before the central crop."""
        return eval_short_side(self.image_size)

    def difference(self, images: Tensor, features: Tensor) -> float:
        """Return the largest absolute difference of `features` (B, D) from the encoder's own of `images`."""
        with torch.inference_mode():
            return (self.encoder(images) - features).abs().max().item()

    def images(self, count: int) -> Tensor:
        """Return random images (count, 3, H, W) to compare features on, always the same."""
        shape = (count, 3, self.image_size, self.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def load_trained(checkpoint: str, license: str | None = None) -> Trained:
    """Return the encoder of a checkpoint or run folder, with what its MLflow run says of it.

    A store that does not answer costs a warning: the scores and fingerprints are then left out.

    Raises:
        ValueError: there is no such checkpoint, or it cannot be read.
    """
    encoder, about = load_encoder(checkpoint)
    tags: dict[str, str] = {}
    scores: dict[str, float] = {}
    try:
        tags, scores = _record(about["tracking_uri"], about["run_id"], about["step"])
    except Exception as error:  # no fault of a store may keep an encoder from its user
        first = str(error).strip().splitlines() or [""]
        print(f"warning: no scores and no fingerprint of the data, as MLflow has them not: {first[0]}")
    return Trained(encoder, about["config"], about["step"], about["run_id"], tags, scores, license)


def _record(uri: str, run_id: str, step: int) -> tuple[dict[str, str], dict[str, float]]:
    """Return a run's fingerprints, and its scores at a step."""
    if is_missing(uri):
        raise FileNotFoundError(f"there is no MLflow store at {uri}")
    client = open_client(uri)
    run = client.get_run(run_id)
    scores = {}
    for name in sorted(name for name in run.data.metrics if name.startswith(SCORES)):
        values = [point.value for point in client.get_metric_history(run_id, name) if point.step == step]
        if values:
            scores[name] = values[-1]
    return {name: tag for name, tag in run.data.tags.items() if name.startswith(FINGERPRINT)}, scores
