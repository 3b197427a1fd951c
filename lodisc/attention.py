"""Read a ViT's attention beside its fused kernel.

Fused attention never forms the attention matrices. Pivots need one row of each, the class token's, and that row is
computed here from the queries and keys that the layer has just projected: nothing is projected twice, and no N x N
matrix exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.hooks import RemovableHandle


@contextmanager
def recorded_attention(vit: VisionTransformer, full: bool = False) -> Iterator[list[Tensor]]:
    """Record the attention of every block that runs inside the context.

    Args:
        vit: a ViT whose blocks project queries, keys and values in one `attn.qkv` layer.
        full: record whole matrices instead of class-token rows. Memory grows with the square of the tokens.

    Yields:
        A list that each block's forward extends by its log attention, averaged over heads, in float32:
        (B, T) from the class token to all T tokens, or (B, T, T) where `full`.
    """
    layers: list[Tensor] = []

    def record(attention: Any) -> RemovableHandle:
        handle: RemovableHandle = attention.qkv.register_forward_hook(
            lambda _module, _inputs, qkv: layers.append(log_attention(attention, qkv, full))
        )
        return handle

    handles = [record(block.attn) for block in vit.blocks]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def fuse_attention(vit: VisionTransformer, fused: bool) -> None:
    """Have every block of a ViT compute its attention by torch's fused kernel or by plain matrix products.

    The results are the same up to rounding. Of plain products memory grows with the square of the tokens, but the
    backward pass of the fused kernel is slow on CPUs in bf16 (`benchmarks/attention.py`).
    """
    layers: list[Any] = [block.attn for block in vit.blocks]
    for layer in layers:
        layer.fused_attn = fused


@torch.no_grad()
def log_attention(attention: Any, qkv: Tensor, full: bool) -> Tensor:
    """Return log(mean over heads of softmax(q k^T / sqrt(d))) in float32, for the class token's row or all rows.

    Args:
        attention: a timm attention layer (num_heads, q_norm, k_norm, scale).
        qkv: (B, T, 3 * C), what its `qkv` layer projected; the class token is the first of the T.
    """
    batch, tokens, _ = qkv.shape
    heads: int = attention.num_heads
    q, k, _ = qkv.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q = q if full else q[:, :, :1]
    q, k = attention.q_norm(q), attention.k_norm(k)
    with torch.autocast(qkv.device.type, enabled=False):  # as the fused kernel, which accumulates in float32
        logits = (q.float() * attention.scale) @ k.float().transpose(-2, -1)
        rows: Tensor = logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(heads)
    return rows if full else rows[:, 0]
