from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from pipelines.takeaway.exports import torchvision_vit
from pipelines.takeaway.exports.trained import Trained


def test_torchvision_loads_it_and_gives_the_same_features(trained: Trained, tmp_path: Path) -> None:
    torchvision_vit.write(trained, tmp_path / "out")
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=192
    ).eval()
    model.heads = torch.nn.Identity()
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    images = trained.images(3)
    torch.testing.assert_close(model(images), trained.encoder(images), rtol=1e-4, atol=1e-5)
    assert torchvision_vit.check(trained, tmp_path / "out") < 1e-5


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("vit_small_patch14_reg4_dinov2", "registers beside the class token"),
        ("deit3_small_patch16_224", "layer scale"),
        ("vit_base_patch16_clip_224", "a norm before the blocks"),
    ],
)
def test_what_it_cannot_hold_is_refused(arch: str, reason: str, make_trained: Callable[..., Trained]) -> None:
    with pytest.raises(ValueError, match=rf"to: torchvision's .* cannot hold {arch}, which has .*{reason}"):
        torchvision_vit.refuse(make_trained(arch=arch, depth=1))


def test_another_epsilon_is_refused(make_trained: Callable[..., Trained]) -> None:
    trained = make_trained()
    torchvision_vit.refuse(trained)
    for norm in (module for module in trained.encoder.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.eps = 1e-5
    with pytest.raises(ValueError, match="epsilon 1e-05 instead of 1e-06"):
        torchvision_vit.refuse(trained)
