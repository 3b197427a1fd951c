"""What a step has to send."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scaling import bytes_needed
from lodisc.config import EncoderConfig, ModelConfig
from lodisc.model import LoDisc
from pipelines.run.config import DataConfig, OptimConfig, PretrainConfig

CONFIG = PretrainConfig(
    data=DataConfig(images="images"),
    encoder=EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=1),
    model=ModelConfig(hidden_dim=64, output_dim=32),
    optim=OptimConfig(batch_size=8, warmup_epochs=0),
)


def test_one_worker_sends_nothing() -> None:
    assert set(bytes_needed(CONFIG, 1).values()) == {0.0}


def test_two_workers_exchange_gradients_statistics_and_keys() -> None:
    needed = bytes_needed(CONFIG, 2)
    model = LoDisc(CONFIG.encoder, CONFIG.model)
    gradients = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert needed["gradients"] == 2 * 4 * gradients
    # Each worker sends its 4 keys of 32 numbers, of two views, whole and local.
    assert needed["keys"] == 2 * (4 * 32 * 2 * 2) * 4
    # Projector 64 + 64 + 32 channels, predictor 64 + 32: two numbers each, both views; in three passes and one, and
    # once more backwards.
    assert needed["batch norm"] == 2 * 4 * (2 * 2 * (3 * 160 + 96) + 2 * 2 * (160 + 96))


def test_without_local_branch_there_are_fewer_keys() -> None:
    plain = replace(CONFIG, model=replace(CONFIG.model, local_weight=0.0))
    assert bytes_needed(plain, 2)["keys"] == pytest.approx(bytes_needed(CONFIG, 2)["keys"] / 2)
    assert bytes_needed(plain, 2)["batch norm"] < bytes_needed(CONFIG, 2)["batch norm"]
