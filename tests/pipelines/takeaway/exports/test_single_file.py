from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from pipelines.takeaway.exports import single_file
from pipelines.takeaway.exports.trained import Trained


def test_it_loads_back_by_our_own_option(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    single_file.write(trained, path)
    again = Encoder(EncoderConfig(arch="test_vit", image_size=32, patch_size=8, depth=2, weights=str(path))).eval()
    images = trained.images(3)
    assert torch.equal(again(images), trained.encoder(images))
    assert single_file.check(trained, path) == 0


def test_its_header_says_what_it_is(make_trained: Callable[..., Trained], tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    single_file.write(make_trained(license="cc-by-4.0"), path)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    expected = {"arch": "test_vit", "image_size": "32", "patch_size": "8", "depth": "2", "step": "7"}
    expected |= {"license": "cc-by-4.0", "mean": "[0.485, 0.456, 0.406]", "dataset.fingerprint": "0123456789abcdef"}
    assert facts.items() >= expected.items()
