"""The objective equals the method written out plainly; without the local branch it is MoCo v3, step for step."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lodisc.config import ModelConfig
from lodisc.model import LoDisc
from tests.lodisc.test_attention import attention_matrices
from tests.lodisc.tiny import PATCHES, attention_layers, tiny_images, tiny_model


def ctr(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(queries)))


def plain_mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last)]
        layers += [] if last else [nn.ReLU()]
    return nn.Sequential(*layers).double()


class PlainMoCo(nn.Module):
    """MoCo v3 by its paper: each view through its own passes, torch's batch norm, a loop over parameters."""

    def __init__(self, initial: LoDisc) -> None:
        super().__init__()
        vit: Any = timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8, depth=2, global_pool="token")
        vit.load_state_dict(initial.encoder.vit.state_dict())
        vit.patch_embed.requires_grad_(False)
        projector = plain_mlp(vit.num_features, 24, 24, 12)
        projector.load_state_dict(initial.projector.state_dict())
        self.base = nn.Sequential(vit.double(), projector)
        self.predictor = plain_mlp(12, 24, 12)
        self.predictor.load_state_dict(initial.predictor.state_dict())
        self.momentum = copy.deepcopy(self.base).requires_grad_(False)

    def loss(self, view1: Tensor, view2: Tensor, temperature: float) -> Tensor:
        q1, q2 = self.predictor(self.base(view1)), self.predictor(self.base(view2))
        with torch.no_grad():
            k1, k2 = self.momentum(view1), self.momentum(view2)
        return ctr(q1, k2, temperature) + ctr(q2, k1, temperature)

    @torch.no_grad()
    def update_momentum(self, m: float) -> None:
        for theirs, ours in zip(self.base.parameters(), self.momentum.parameters(), strict=True):
            ours.copy_(m * ours + (1 - m) * theirs)


def train_steps(model: LoDisc, steps: int = 2) -> list[float]:
    """Take AdamW steps as the train loop does; return the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.5)
    losses = []
    for step in range(steps):
        model.update_momentum(0.9)
        loss, _ = model(*(tiny_images(6, seed, torch.float64) for seed in (2 * step, 2 * step + 1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_without_local_branch_it_is_moco_v3() -> None:
    model = tiny_model(local_weight=0.0)
    plain = PlainMoCo(model)
    losses = train_steps(model, steps=2)

    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.5)
    for step in range(2):
        plain.update_momentum(0.9)
        view1, view2 = (tiny_images(6, seed, torch.float64) for seed in (2 * step, 2 * step + 1))
        loss = plain.loss(view1, view2, 0.2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-9)

    pairs = [
        (model.encoder.vit, plain.base[0]),
        (model.projector, plain.base[1]),
        (model.predictor, plain.predictor),
        (model.momentum_encoder.vit, plain.momentum[0]),
        (model.momentum_projector, plain.momentum[1]),
    ]
    for ours, theirs in pairs:  # batch norm's running statistics are among these
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-6, atol=1e-8)


def plain_kept(model: LoDisc, view: Tensor) -> Tensor:
    scores = attention_matrices(model.momentum_encoder.vit, view).prod(dim=0)[:, 0, 1:]
    return scores.argsort(dim=1, descending=True)[:, : int(0.3 * PATCHES)].sort(dim=1).values


def plain_local_features(model: LoDisc, view: Tensor, kept: Tensor, local_view: str) -> Tensor:
    """Encode local views image by image."""
    vit, features = model.momentum_encoder.vit, []
    for image, own in zip(view, kept, strict=True):
        if local_view == "pixels":
            masked = torch.zeros_like(image)
            for patch in own.tolist():
                rows, columns = slice(patch // 4 * 8, patch // 4 * 8 + 8), slice(patch % 4 * 8, patch % 4 * 8 + 8)
                masked[:, rows, columns] = image[:, rows, columns]
            features.append(vit(masked[None]))
        else:
            tokens = vit._pos_embed(vit.patch_embed(image[None]))
            tokens = tokens[:, [0, *(own + 1).tolist()]]
            features.append(vit.norm(vit.blocks(tokens))[:, 0])
    return torch.cat(features)


@pytest.mark.parametrize("local_view", ["tokens", "pixels"])
def test_loss_is_the_method_written_out(local_view: Any) -> None:
    model = tiny_model(local_view=local_view, local_weight=0.5, temperature=0.3)
    views = [tiny_images(5, seed, torch.float64) for seed in (1, 2)]
    loss, metrics = copy.deepcopy(model)(*views)
    with torch.no_grad():
        queries = [model.predictor(model.projector(model.encoder(view))) for view in views]
        keys = [model.momentum_projector(model.momentum_encoder(view)) for view in views]
        local = [plain_local_features(model, view, plain_kept(model, view), local_view) for view in views]
        local_keys = [model.momentum_projector(features) for features in local]
    global_loss = ctr(queries[0], keys[1], 0.3) + ctr(queries[1], keys[0], 0.3)
    local_loss = ctr(queries[0], local_keys[1], 0.3) + ctr(queries[1], local_keys[0], 0.3)
    torch.testing.assert_close(metrics["loss/global"], global_loss)
    torch.testing.assert_close(metrics["loss/local"], local_loss)
    torch.testing.assert_close(loss.detach(), global_loss + 0.5 * local_loss)
    assert math.isclose(metrics["loss"].item(), loss.item())


def momentum_passes(model: LoDisc) -> list[tuple[Any, ...]]:
    """Return the arguments of every pass of the momentum encoder over one step."""
    passes: list[tuple[Any, ...]] = []
    handle = model.momentum_encoder.vit.patch_embed.register_forward_pre_hook(
        lambda _module, inputs: passes.append(inputs)
    )
    model(tiny_images(3, 1, torch.float64), tiny_images(3, 2, torch.float64))
    handle.remove()
    return passes


def test_tokens_and_pixels_keep_the_same_patches() -> None:
    pixels = momentum_passes(tiny_model(local_view="pixels"))[1][0]
    visible = F.max_pool2d(pixels.abs().amax(dim=1), 8).flatten(1) > 0
    model, kept = tiny_model(local_view="tokens"), []
    model.momentum_encoder.register_forward_pre_hook(lambda _module, inputs: kept.extend(inputs[1:]))
    model(tiny_images(3, 1, torch.float64), tiny_images(3, 2, torch.float64))
    assert len(kept) == 1
    assert torch.equal(torch.zeros_like(visible).scatter(1, kept[0], True), visible)


@pytest.mark.parametrize(("changes", "passes"), [({}, 2), ({"pivots": "random"}, 2), ({"local_weight": 0.0}, 1)])
def test_the_momentum_encoder_runs_no_more_than_needed(changes: dict[str, Any], passes: int) -> None:
    assert len(momentum_passes(tiny_model(**changes))) == passes


def test_without_local_branch_attention_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(local_weight=0.0)
    monkeypatch.delattr("lodisc.encoder.recorded_attention")
    _, metrics = model(tiny_images(3, 1, torch.float64), tiny_images(3, 2, torch.float64))
    assert not {"loss/local", "pivots/entropy", "pivots/overlap"} & metrics.keys()


def test_momentum_side_learns_by_its_update_alone() -> None:
    model = tiny_model(freeze_patch_embed=False)
    moved = dict(copy.deepcopy(model.momentum_encoder).named_parameters())
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    base = dict(model.encoder.named_parameters())
    model.update_momentum(0.75)
    for name, parameter in model.momentum_encoder.named_parameters():
        torch.testing.assert_close(parameter, 0.75 * moved[name] + 0.25 * base[name])

    before = copy.deepcopy(list(model.momentum_encoder.parameters()))
    model(tiny_images(3, 1, torch.float64), tiny_images(3, 2, torch.float64))[0].backward()
    model.update_momentum(1.0)
    for parameter, old in zip(model.momentum_encoder.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, old)


def test_the_frozen_patch_embedding_never_moves() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.encoder.vit.patch_embed.state_dict())
    qkv = attention_layers(model.encoder.vit)[0].qkv.weight
    qkv_before = qkv.detach().clone()
    train_steps(model)
    for encoder in (model.encoder, model.momentum_encoder):
        torch.testing.assert_close(encoder.vit.patch_embed.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(qkv, qkv_before)


@pytest.mark.parametrize("changes", [{}, {"pivots": "rollout"}, {"local_view": "pixels"}, {"head_dropout": 0.2}])
def test_bf16_autocast_trains(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = model(tiny_images(4, 1), tiny_images(4, 2))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(value.isfinite() and value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_metrics_are_what_they_say() -> None:
    model = tiny_model()
    views = [tiny_images(6, seed, torch.float64) for seed in (1, 2)]
    unit = F.normalize(model.encoder(torch.cat(views)).detach(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(unit.T))
    _, metrics = model(*views)
    rank = eigenvalues.sum() ** 2 / eigenvalues.square().sum()
    assert metrics["feature/effective_rank"].item() == pytest.approx(rank.item(), rel=1e-3)
    assert metrics["feature/std"].item() == pytest.approx(
        unit.std(dim=0).mean().item() * unit.shape[1] ** 0.5, rel=1e-4
    )
    assert 0 < metrics["pivots/entropy"] <= 1
    assert 0 <= metrics["pivots/overlap"] <= 1
    assert 0 <= metrics["contrastive/top1"] <= 100


def test_the_same_view_twice_has_the_same_pivots() -> None:
    view = tiny_images(3, 1, torch.float64)
    assert tiny_model()(view, view)[1]["pivots/overlap"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("local_weight", -1.0),
        ("mask_ratio", 1.0),
        ("mask_ratio", -0.1),
        ("local_view", "crops"),
        ("pivots", "best"),
        ("momentum", 1.5),
        ("hidden_dim", 0),
        ("output_dim", 0),
        ("head_dropout", 1.0),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"model\.{field} must be .*{value}"):
        ModelConfig(**{field: value})
