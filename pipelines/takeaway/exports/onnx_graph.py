"""One ONNX file: a graph for any batch size, with what is known of the encoder in its metadata."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.takeaway.exports import card
from pipelines.takeaway.exports.trained import Trained

INPUT, OUTPUT = "images", "features"
BATCHES = (1, 5)


def write(trained: Trained, path: Path) -> None:
    """Write the graph: `images` (batch, 3, H, W) float32, normalised, to `features` (batch, D) float32."""
    program = torch.onnx.export(
        trained.encoder,
        (trained.images(2),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    assert program is not None, "the exporter of dynamo returns its program"
    program.model.metadata_props.update(card.facts(trained))
    program.save(path)


def check(trained: Trained, path: Path) -> float:
    """Return the largest difference that onnxruntime's features have from the encoder's, for several batch sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for size in BATCHES:
        images = trained.images(size)
        (features,) = session.run([OUTPUT], {INPUT: images.numpy()})
        differences.append(trained.difference(images, torch.from_numpy(features)))
    return max(differences)
