from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch

from pipelines.takeaway.exports import onnx_graph
from pipelines.takeaway.exports.trained import Trained


@pytest.mark.slow
def test_onnxruntime_gives_the_same_features_for_any_batch(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    onnx_graph.write(trained, path)
    session = onnxruntime.InferenceSession(path)
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape[1:]) == ("images", [3, 32, 32]) and isinstance(given.shape[0], str)
    assert (found.name, found.shape[1:]) == ("features", [64])
    for batch in (1, 5):
        images = trained.images(batch)
        (features,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(features), trained.encoder(images), rtol=0, atol=1e-4)
    assert 0 < onnx_graph.check(trained, path) < 1e-4
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["arch"] == "test_vit" and facts["mean"] == "[0.485, 0.456, 0.406]"
    assert "short side of 37 px; central crop of 32 x 32 px" in facts["preprocessing"]
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]
