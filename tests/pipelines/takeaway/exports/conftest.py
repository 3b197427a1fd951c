"""An encoder to export, small and of a shape that is not its architecture's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from lodisc.config import ModelConfig
from lodisc.encoder import Encoder
from pipelines.run.config import DataConfig, PretrainConfig, to_dict
from pipelines.takeaway.exports.trained import Trained
from tests.lodisc.tiny import tiny_config, tiny_encoder


def shaken(encoder: Encoder) -> Encoder:
    """Return the encoder with norms and biases that differ from each other, or two that are mixed up would not show."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return encoder


@pytest.fixture(scope="session")
def make_trained() -> Callable[..., Trained]:
    """Return `make(license=None, **changes of the encoder's config)`."""

    def make(license: str | None = None, **changes: object) -> Trained:
        encoder = tiny_config(**changes)
        config = PretrainConfig(
            data=DataConfig(images="secret/place"), encoder=encoder, model=ModelConfig(hidden_dim=16, output_dim=8)
        )
        return Trained(
            encoder=shaken(tiny_encoder(**asdict(encoder))).eval(),
            config=to_dict(config),
            step=7,
            run_id="a-run",
            fingerprints={"dataset.fingerprint": "0123456789abcdef"},
            scores={"eval/knn/fine": 12.5, "test/rankme": 3.0},
            license=license,
        )

    return make


@pytest.fixture(scope="session")
def trained(make_trained: Callable[..., Trained]) -> Trained:
    return make_trained()


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """A wide image with detail at every scale."""
    random = np.random.default_rng(3)
    coarse = Image.fromarray(random.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((97, 61))
    noise = random.integers(-40, 40, (61, 97, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))
