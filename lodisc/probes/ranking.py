"""Rank a gallery by cosine similarity to each query, in bounded memory and with one answer for ties.

A key is an int64 that holds a similarity and the place of a gallery row, so that keys in ascending order are rows from
the most to the least similar, and equally similar rows are in the gallery's order. No two keys of a query are equal:
neither a sort nor a top-k has a choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_PAIRS = 2**22
SIMILARITY_SCALE = 2**30
PLACES = 2**32


def ranking_keys(queries: Tensor, gallery: Tensor, max_pairs: int = MAX_PAIRS) -> Iterator[Tensor]:
    """Yield, for consecutive chunks of q queries, the keys (q, G) int64 of all gallery rows, in the gallery's order.

    Products are summed in float64 and rounded to 30 binary places, so that equal rows stay equal however the work is
    cut into chunks.

    Args:
        queries: (Q, D) floating point.
        gallery: (G, D) floating point, on the same device.
        max_pairs: how many keys are held at a time, but at least one query's. One takes 16 bytes while it is made.
    """
    columns = F.normalize(gallery.double(), dim=1).T
    places = torch.arange(len(gallery), device=gallery.device)
    for chunk in queries.split(max(1, max_pairs // len(gallery))):
        distances = (F.normalize(chunk.double(), dim=1) * -SIMILARITY_SCALE) @ columns
        # Not cut off: that would tell 1 from 1 - 1e-16, which is what an image and its copy come to.
        yield distances.round_().long().mul_(PLACES).add_(places)


def nearest(queries: Tensor, gallery: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the places (Q, k) int64 and cosine similarities (Q, k) float64 of each query's k nearest gallery rows.

    Args:
        queries: (Q, D) floating point.
        gallery: (G, D) floating point, on the same device.
        k: at most G, or G - 1 with `own`.
        own: (Q,) int64, the gallery row that each query itself is, and that is left out; None where it is none.
    """
    found: list[Tensor] = []
    done = 0
    for chunk in ranking_keys(queries, gallery):
        if own is not None:
            chunk.scatter_(1, own[done : done + len(chunk)].unsqueeze(1), torch.iinfo(torch.long).max)
        done += len(chunk)
        found.append(chunk.topk(k, dim=1, largest=False).values)
    keys = torch.cat(found)
    return places_of(keys), similarities_of(keys)


def places_of(keys: Tensor) -> Tensor:
    """Return the gallery rows of keys, int64 of the same shape."""
    return keys & (PLACES - 1)


def similarities_of(keys: Tensor) -> Tensor:
    """Return the cosine similarities of keys, float64 of the same shape, exact to 1e-9."""
    return (keys >> 32).double() / -SIMILARITY_SCALE


def sorted_keys(keys: Tensor) -> Tensor:
    """Return keys in ascending order in their last dimension. Those passed in may be overwritten."""
    if keys.device.type != "cpu":
        return keys.sort(dim=-1).values
    # numpy sorts integers with vector instructions; torch carries their indices along, which takes four times as long.
    keys.numpy().sort(axis=-1)
    return keys
