"""Features of a set of images, computed on every processor of the cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from lodisc.encoder import Encoder
from lodisc.normalise import normalise
from lodisc.precision import autocast, resolve_precision
from lodisc.views import eval_view
from pipelines.data.decode import decode_image
from pipelines.data.labelled import all_or_none
from pipelines.data.sources import ROW
from pipelines.run.nodes import Nodes, node_resources

# Few enough rows that the actors share even a small set, enough that a task outweighs its overhead.
BATCHES_PER_BLOCK = 4


@dataclass(frozen=True)
class Features:
    """Images as an encoder sees them; row i, path i and label i belong together.

    Attributes:
        features: (N, D) float32, on the CPU.
        paths: of the images.
        labels: fine class names; None where any image has none.
        coarse: coarse class names; None where any image has none.
    """

    features: torch.Tensor
    paths: list[str]
    labels: list[str] | None = None
    coarse: list[str] | None = None


@torch.inference_mode()
def embed_decoded(
    encoder: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[Mapping[str, np.ndarray]],
    view: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Features:
    """Embed views that are decoded already.

    Args:
        encoder: on the device, in evaluation mode.
        batches: of columns {path, label, coarse} and the view's, uint8 (B, 3, H, W), in the order of the result;
            one at least.
        view: name of the column to embed.
        device: to compute on.
        dtype: of the products, see `autocast`; the features are float32.
    """
    chunks: list[torch.Tensor] = []
    rows: dict[str, list[Any]] = {"path": [], "label": [], "coarse": []}
    for batch in batches:
        views = normalise(torch.tensor(batch[view]).to(device))
        with autocast(dtype, device):
            chunks.append(encoder(views).float().cpu())
        for name, values in rows.items():
            # Where no image of a block has a class, Ray gives NaN.
            values += [value if isinstance(value, str) else None for value in batch[name]]
    return Features(torch.cat(chunks), rows["path"], all_or_none(rows["label"]), all_or_none(rows["coarse"]))


def extract(encoder: Encoder, dataset: ray.data.Dataset, image_size: int, batch_size: int = 64) -> Features:
    """Embed the evaluation view of every image of a dataset, in the dataset's order, and hold all features at once.

    Args:
        encoder: on the CPU; each actor moves its own copy to its GPU where the cluster has GPUs.
        dataset: rows {bytes, path, label, coarse}, all of which decode. Its option `preserve_order` is set.
        image_size: side of the square view in pixels.
        batch_size: images a forward pass.

    Raises:
        ValueError: the dataset is empty.
    """
    features: list[np.ndarray] = []
    rows: dict[str, list[Any]] = {"path": [], "label": [], "coarse": []}
    embedded = embed_images(encoder, dataset, image_size, batch_size)
    batch: pa.Table
    for batch in embedded.iter_batches(batch_size=None, batch_format="pyarrow"):
        features.append(matrix(batch["embedding"]))
        for name, values in rows.items():
            values += batch[name].to_pylist()
    everything = torch.from_numpy(np.concatenate(features))
    return Features(everything, rows["path"], all_or_none(rows["label"]), all_or_none(rows["coarse"]))


def embed_images(
    encoder: Encoder,
    dataset: ray.data.Dataset,
    image_size: int,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    patch_tokens: bool = False,
) -> ray.data.Dataset:
    """Return the rows {path, label, coarse, embedding} of a dataset of images, in its order, computed as they are read.

    Args:
        encoder, dataset, image_size, batch_size: see `extract`. Batches are cut from the dataset's start, so rows from
            a multiple of the batch size on are embedded as they are among all rows.
        dtype: of the embeddings (D numbers).
        patch_tokens: add {patch_tokens} (N * D numbers), the tokens that `Encoder.forward_with_patches` gives.

    Raises:
        ValueError: the dataset is empty.
    """
    dataset.context.execution_options.preserve_order = True
    # Read before the actors exist: they may take every CPU, and reading beside them would then wait for ever.
    images = dataset.select_columns(ROW.names).materialize()
    batches = math.ceil(images.count() / batch_size)
    if batches == 0:
        raise ValueError("there are no images to embed")
    blocks = math.ceil(batches / BATCHES_PER_BLOCK)
    actors, resources = plan_actors(node_resources(), blocks)
    if blocks == 1 and not resources["num_gpus"]:
        # One actor would do it all, and take seconds to import torch. This process has it, and all of its CPUs.
        here = Embed(encoder, image_size, torch.get_num_threads(), dtype, patch_tokens)
        return ray.data.from_arrow(list(map(here, images.iter_batches(batch_size=batch_size, batch_format="pyarrow"))))
    threads = max(1, int(resources["num_cpus"]))
    return (
        images.repartition(target_num_rows_per_block=BATCHES_PER_BLOCK * batch_size, strict=True)
        .materialize()
        .map_batches(
            Embed,
            fn_constructor_args=(ray.put(encoder), image_size, threads, dtype, patch_tokens),
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            **resources,
        )
    )


def plan_actors(nodes: Nodes, most: int) -> tuple[int, dict[str, float]]:
    """Return how many actors embed, at most `most`, and the resources of each, from the resources of every node.

    An actor a GPU, with its share of the node's CPUs for decoding; without GPUs an actor a CPU, which suits both the
    decoder and a matrix product better than one actor of many threads.
    """
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1 and node.get("CPU", 0) > 0]
    if with_gpu:
        share = min(node["CPU"] / node["GPU"] for node in with_gpu)
        gpus = sum(int(node["GPU"]) for node in with_gpu)
        return min(most, gpus), {"num_cpus": math.floor(share) if share >= 1 else share, "num_gpus": 1}
    cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    return max(1, min(most, cpus)), {"num_cpus": 1, "num_gpus": 0}


class Embed:
    """The actor that turns a batch of encoded images into features."""

    def __init__(
        self,
        encoder: Encoder | ray.ObjectRef[Encoder],
        image_size: int,
        threads: int,
        dtype: torch.dtype = torch.float32,
        patch_tokens: bool = False,
    ) -> None:
        torch.set_num_threads(threads)
        self.decoders = ThreadPoolExecutor(threads)
        self.image_size, self.dtype, self.patch_tokens = image_size, dtype, patch_tokens
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = resolve_precision("auto", self.device)
        here = encoder if isinstance(encoder, Encoder) else ray.get(encoder)
        self.encoder: Encoder = here.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, rows: pa.Table) -> pa.Table:
        """Map {bytes, path, label, coarse} to {path, label, coarse, embedding}, and {patch_tokens} where asked."""
        views = np.stack(list(self.decoders.map(self._view, rows["bytes"].to_pylist())))
        images = normalise(torch.from_numpy(views).to(self.device))
        table = rows.select(["path", "label", "coarse"])
        with autocast(self.precision, self.device):
            if not self.patch_tokens:
                return table.append_column("embedding", self._lists(self.encoder(images)))
            features, patches = self.encoder.forward_with_patches(images)
        table = table.append_column("embedding", self._lists(features))
        return table.append_column("patch_tokens", self._lists(patches.flatten(1)))

    def _view(self, data: bytes) -> np.ndarray:
        return eval_view(decode_image(data), self.image_size)

    def _lists(self, values: torch.Tensor) -> pa.FixedSizeListArray:
        numbers = values.float().to(self.dtype).cpu().numpy()
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])


def matrix(lists: pa.ChunkedArray) -> np.ndarray:
    """Return a column of n lists of one length D as (n, D)."""
    return lists.combine_chunks().flatten().to_numpy().reshape(len(lists), lists.type.list_size)
