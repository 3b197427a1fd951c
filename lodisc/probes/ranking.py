"""Order a gallery by cosine similarity to each query, in bounded memory and with one answer for ties."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_PAIRS = 2**22


def rankings(queries: Tensor, gallery: Tensor, max_pairs: int = MAX_PAIRS) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for consecutive chunks of queries, the gallery from the most to the least similar.

    Equally similar gallery rows keep the order they have in the gallery. Products are summed in float64 and then
    rounded to float32, so that equal rows stay equal however the work is cut into chunks.

    Args:
        queries: (Q, D) floating point.
        gallery: (G, D) floating point, on the same device.
        max_pairs: how many similarities are held at a time, but at least one query's.

    Yields:
        Cosine similarities (q, G) float32 in descending order, and the gallery rows (q, G) int64 they belong to.
    """
    columns = F.normalize(gallery.double(), dim=1).T
    for chunk in queries.split(max(1, max_pairs // len(gallery))):
        similarities = (F.normalize(chunk.double(), dim=1) @ columns).float()
        ranked = torch.sort(similarities, dim=1, descending=True, stable=True)
        yield ranked.values, ranked.indices
