"""Feature extraction on a real Ray equals a plain loop over the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
import torch

from lodisc.config import EncoderConfig
from lodisc.encoder import Encoder
from lodisc.normalise import normalise
from lodisc.precision import autocast, resolve_precision
from lodisc.views import eval_view
from pipelines.data.decode import decode_image
from pipelines.data.labelled import all_or_none
from pipelines.evaluation.features import Features, embed_decoded, extract, plan_actors

SCHEMA = pa.schema([("bytes", pa.binary()), ("path", pa.string()), ("label", pa.string()), ("coarse", pa.string())])


@pytest.mark.slow
def test_extract_is_a_plain_loop_in_the_datasets_order(ray_session: None, image_folder: Callable[..., Path]) -> None:
    paths = sorted(image_folder(classes=2, per_class=10).rglob("*.jpg"))
    rows: list[dict[str, Any]] = [
        {"bytes": path.read_bytes(), "path": str(path), "label": path.parent.name, "coarse": None if i == 3 else "any"}
        for i, path in enumerate(paths)
    ]
    dataset = ray.data.from_arrow([pa.Table.from_pylist(part, schema=SCHEMA) for part in (rows[:2], rows[2:])])
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2)).eval()

    found = extract(encoder, dataset, image_size=32, batch_size=3)

    cpu = torch.device("cpu")
    with torch.inference_mode(), autocast(resolve_precision("auto", cpu), cpu):
        views = [torch.from_numpy(eval_view(decode_image(row["bytes"]), 32)) for row in rows]
        # In the same batches: a sum in bfloat16 may round otherwise in others.
        expected = torch.cat([encoder(normalise(torch.stack(views[i : i + 3]))) for i in range(0, 20, 3)]).float()
    assert found.features.dtype == torch.float32
    # In bfloat16 the size of a batch decides in which order a kernel sums, and so a value's last bits, of eight.
    tolerance = 1e-4 if resolve_precision("auto", cpu) == torch.float32 else 3e-2
    torch.testing.assert_close(found.features, expected, rtol=tolerance, atol=tolerance)
    assert torch.cdist(found.features, expected).argmin(dim=1).tolist() == list(range(len(paths)))
    assert found.paths == [str(path) for path in paths]
    assert found.labels == [path.parent.name for path in paths]
    assert found.coarse is None, "one image has no coarse label"
    # Seven batches are shared by actors; one is embedded by this process.
    alone = extract(encoder, dataset, image_size=32, batch_size=20)
    assert alone.paths == found.paths and alone.labels == found.labels
    torch.testing.assert_close(alone.features, expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="no images"):
        extract(encoder, ray.data.from_arrow(SCHEMA.empty_table()), image_size=32)


def test_decoded_views_are_embedded_batch_by_batch() -> None:
    views = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(3, axis=1)
    names = np.array(["wren", "robin", "tit", "wren", "tit"], dtype=object)
    rows = {"view": views, "path": np.array([f"{i}.jpg" for i in range(5)]), "label": names}
    batches = [{key: column[part] for key, column in rows.items()} for part in (slice(3), slice(3, 5))]
    coarse = np.array(["small", "small", "blue", "small", "blue"], dtype=object)
    batches[0]["coarse"], batches[1]["coarse"] = coarse[:3], coarse[3:]

    def embed() -> Features:
        return embed_decoded(lambda images: images.flatten(1), batches, "view", torch.device("cpu"), torch.float32)

    found = embed()
    assert found.features.tolist() == normalise(torch.from_numpy(views)).flatten(1).tolist()
    assert found.paths == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert (found.labels, found.coarse) == (names.tolist(), coarse.tolist())
    batches[0]["coarse"] = np.array([np.nan] * 3)
    assert embed().coarse is None, "Ray gives NaN where a block has no class"


def test_actors_fit_every_cluster() -> None:
    one_cpu, laptop, bare = {"CPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"memory": 1.0}
    assert plan_actors([one_cpu], most=10) == (1, {"num_cpus": 1, "num_gpus": 0})
    assert plan_actors([{"CPU": 2.0}, bare], most=10) == (2, {"num_cpus": 1, "num_gpus": 0})
    assert plan_actors([{"CPU": 64.0}] * 2, most=3) == (3, {"num_cpus": 1, "num_gpus": 0})
    assert plan_actors([laptop, {"CPU": 32.0}], most=10) == (1, {"num_cpus": 8, "num_gpus": 1})
    assert plan_actors([{"CPU": 12.0, "GPU": 8.0}, laptop], most=100) == (9, {"num_cpus": 1, "num_gpus": 1})
    assert plan_actors([{"CPU": 4.0, "GPU": 8.0}], most=100) == (8, {"num_cpus": 0.5, "num_gpus": 1})


def test_labels_count_only_where_every_image_has_one() -> None:
    assert all_or_none(["a", "b"]) == ["a", "b"]
    assert all_or_none(["a", None]) is None
