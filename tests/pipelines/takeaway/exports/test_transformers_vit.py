from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from lodisc.normalise import normalise
from lodisc.views import eval_view
from pipelines.takeaway.exports import transformers_vit
from pipelines.takeaway.exports.trained import Trained


@pytest.mark.slow
def test_transformers_loads_it_and_gives_the_same_features(
    trained: Trained, photograph: Image.Image, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModel

    transformers_vit.write(trained, tmp_path / "out")
    model, loading = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False, output_loading_info=True)
    assert type(model).__name__ == "ViTModel"
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = trained.images(3)
    features = model(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(features, trained.encoder(images), rtol=1e-4, atol=1e-5)
    assert transformers_vit.check(trained, tmp_path / "out") < 1e-5

    ours = normalise(torch.from_numpy(eval_view(photograph, 32))[None])
    for options, tolerance in (({"backend": "pil"}, 1e-5), ({}, 1.01 / 255 / 0.224)):  # of one grey level
        processor = AutoImageProcessor.from_pretrained(tmp_path / "out", **options)
        view = processor(photograph, return_tensors="pt").pixel_values
        torch.testing.assert_close(view, ours, rtol=0, atol=tolerance)


def test_what_it_cannot_hold_is_refused(make_trained: Callable[..., Trained]) -> None:
    with pytest.raises(ValueError, match=r"to: the ViTModel of transformers cannot hold .*layer scale; export to timm"):
        transformers_vit.refuse(make_trained(arch="vit_small_patch14_dinov2", depth=1))
