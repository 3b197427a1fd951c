"""Classifiers on an encoder, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lodisc.classifier import Classifier, head_losses, hits
from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder

TINY = EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=16, depth=2)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_frozen_encoder_gets_no_gradient_and_computes_as_in_evaluation(images: torch.Tensor) -> None:
    model = Classifier(Encoder(TINY), classes=5, heads=2)
    model.encoder.vit.pos_drop.p = 0.9  # would change the features of an encoder in training mode
    logits = model(images)
    assert logits.shape == (2, 3, 5)
    torch.testing.assert_close(logits[0], logits[1])
    logits.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"}
    with torch.no_grad():
        torch.testing.assert_close(model.features(images), model.encoder.eval()(images))


def test_otherwise_all_of_it_is_trained_the_patch_embedding_too(images: torch.Tensor) -> None:
    model = Classifier(Encoder(TINY), classes=5, frozen=False)
    model(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.encoder.training and not model.eval().encoder.training


def test_logits_are_float32_whatever_the_encoder_computes_in(images: torch.Tensor) -> None:
    model = Classifier(Encoder(TINY), classes=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).dtype == torch.float32


def test_losses_are_weighted_cross_entropies() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 4, 3, generator=generator), torch.tensor([0, 2, 1, 1])
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.5, 0.0]])
    for head, loss in enumerate(head_losses(logits, targets, weights)):
        each = [F.cross_entropy(logits[head, i], targets[i]) * weights[head, i] for i in range(4)]
        torch.testing.assert_close(loss, sum(each) / 4)


@pytest.mark.parametrize("classes", [3, 9])
def test_hits_agree_with_sorting(classes: int) -> None:
    logits = torch.randn(2, 50, classes, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(-1, classes, (50,), generator=torch.Generator().manual_seed(2))
    for head, counted in enumerate(hits(logits, targets).tolist()):
        ranked = [row.argsort(descending=True).tolist()[:5] for row in logits[head]]
        top1 = sum(row[0] == target for row, target in zip(ranked, targets.tolist(), strict=True))
        top5 = sum(target in row for row, target in zip(ranked, targets.tolist(), strict=True))
        assert counted == [top1, top5]
