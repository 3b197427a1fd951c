from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from lodisc.normalise import normalise
from lodisc.views import eval_short_side, eval_view
from pipelines.takeaway.exports import timm_hub
from pipelines.takeaway.exports.trained import Trained


def test_timm_loads_the_folder_and_gives_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    timm_hub.write(trained, tmp_path / "out")
    images = trained.images(3)
    expected = trained.encoder(images)
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(model(images), expected)
    assert len(model.blocks) == 2 and model.patch_embed.patch_size == (8, 8) and model.num_classes == 0
    assert timm_hub.check(trained, tmp_path / "out") == 0


def test_the_weights_alone_are_enough(trained: Trained, tmp_path: Path) -> None:
    timm_hub.write(trained, tmp_path / "out")
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2}
    overlay = {"file": str(tmp_path / "out" / "model.safetensors")}
    model = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, global_pool="token", **shape
    )
    images = trained.images(3)
    assert torch.equal(model.eval()(images), trained.encoder(images))


@pytest.mark.parametrize("arch", ["vit_small_patch14_reg4_dinov2.lvd142m", "vit_base_patch16_clip_224"])
def test_architectures_that_are_not_plain(arch: str, make_trained: Callable[..., Trained], tmp_path: Path) -> None:
    trained = make_trained(arch=arch, depth=1)
    timm_hub.write(trained, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    for side in (32, 48):
        images = torch.randn(2, 3, side, side)
        assert torch.equal(model(images), trained.encoder(images))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architecture"] == arch.split(".")[0]


def test_timms_transform_is_our_evaluation_view(trained: Trained, photograph: Image.Image, tmp_path: Path) -> None:
    timm_hub.write(trained, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    ours = normalise(torch.from_numpy(eval_view(photograph, 32))[None])[0]
    torch.testing.assert_close(transform(photograph), ours, rtol=0, atol=1e-6)


def test_no_size_loses_a_pixel_to_rounding() -> None:
    for size in range(8, 1025):
        side = eval_short_side(size)
        fraction = timm_hub.crop_fraction(size, side)
        assert math.floor(size / fraction) == side and fraction == pytest.approx(size / side)


def test_only_the_encoder_is_in_it_and_anyone_may_read_it(trained: Trained, tmp_path: Path) -> None:
    timm_hub.write(trained, tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    assert load_file(weights).keys() == trained.encoder.vit.state_dict().keys()
    assert weights.stat().st_mode == (tmp_path / "out" / "config.json").stat().st_mode
