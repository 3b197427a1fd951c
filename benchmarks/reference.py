"""The step as the authors' reference code computes it, written afresh from METHOD's list of what that costs.

What makes it slow is kept on purpose: every view through passes of its own, N x N attention in every layer, a second
pass of the momentum encoder to read attention, a pass of the base encoder for a metric alone, four momentum updates
parameter by parameter, and a mask that Python fills pixel by pixel. That is 14 forward-equivalents a pair of views;
METHOD counts 16 but does not say where the other two go, so the ratios against this code are lower bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lodisc.encoder import Encoder
from lodisc.model import LoDisc


def reference_loss(model: LoDisc, view1: Tensor, view2: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """Update the momentum encoder and compute the loss on two normalised views (B, 3, H, W), in one process.

    Args:
        model: whose modules compute; `temperature`, `local_weight` and `mask_ratio` of its config hold.
        view1: first view of the images.
        view2: second view of the same images.
        momentum: m; four updates a step make it m ** 4.

    Returns:
        The loss, a scalar with gradient, and the share of pixels (0 to 1) that base and momentum encoder both keep.
    """
    views = (view1, view2)
    with plain_attention(model):
        q1, q2 = (model.predictor(model.projector(model.encoder(view))) for view in views)
        with torch.no_grad():
            for _ in range(4):
                update_momentum(model, momentum)
            k1, k2 = (model.momentum_projector(model.momentum_encoder(view)) for view in views)
            masks = [pixel_mask(model, model.momentum_encoder, view) for view in views]
            local_views = [view * mask for view, mask in zip(views, masks, strict=True)]
            k1_local, k2_local = (model.momentum_projector(model.momentum_encoder(view)) for view in local_views)
            base_masks = [pixel_mask(model, model.encoder, view) for view in views]
            shares = [(base * own).sum() / own.sum() for base, own in zip(base_masks, masks, strict=True)]
    tau = model.config.temperature
    loss = ctr(q1, k2, tau) + ctr(q2, k1, tau)
    return loss + model.config.local_weight * (ctr(q1, k2_local, tau) + ctr(q2, k1_local, tau)), torch.stack(
        shares
    ).mean()


def ctr(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """2 tau * cross_entropy(normalize(q) @ normalize(k).T / tau, own index)."""
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))


def update_momentum(model: LoDisc, momentum: float) -> None:
    """theta' <- m theta' + (1 - m) theta, one parameter after another."""
    pairs = ((model.encoder, model.momentum_encoder), (model.projector, model.momentum_projector))
    for theirs, ours in pairs:
        for base, average in zip(theirs.parameters(), ours.parameters(), strict=True):
            average.data = average.data * momentum + base.data * (1 - momentum)


def pixel_mask(model: LoDisc, encoder: Encoder, view: Tensor) -> Tensor:
    """Return (B, 1, H, W): 1 where a patch of `view` is kept, filled pixel by pixel."""
    fused = reduce(torch.mul, attention_matrices(encoder, view))[:, 0, encoder.prefix_tokens :]
    count = int((1 - model.config.mask_ratio) * fused.shape[1] + 1e-6)
    threshold = fused.sort(dim=1, descending=True).values[:, count]
    columns = view.shape[3] // encoder.patch_size[1]
    chosen = (fused > threshold.unsqueeze(1)).cpu().numpy()
    mask = np.zeros((len(view), 1, *view.shape[2:]), dtype=np.float32)
    for image in range(mask.shape[0]):
        for y in range(mask.shape[2]):
            for x in range(mask.shape[3]):
                patch = (y // encoder.patch_size[0]) * columns + x // encoder.patch_size[1]
                mask[image, 0, y, x] = chosen[image, patch]
    return torch.from_numpy(mask).to(view)


def attention_matrices(encoder: Encoder, view: Tensor) -> list[Tensor]:
    """Run a pass and return every layer's attention (B, T, T), averaged over heads."""
    layers: list[Tensor] = []

    def keep(_module: object, _inputs: object, attention: Tensor) -> None:
        layers.append(attention.mean(dim=1))

    handles = [attention.attn_drop.register_forward_hook(keep) for attention in _attentions(encoder)]
    encoder(view)
    for handle in handles:
        handle.remove()
    return layers


@contextmanager
def plain_attention(model: LoDisc) -> Iterator[None]:
    """Compute attention as softmax(q k^T) v with the matrix in memory, inside the context."""
    layers = [*_attentions(model.encoder), *_attentions(model.momentum_encoder)]
    before = [layer.fused_attn for layer in layers]
    for layer in layers:
        layer.fused_attn = False
    try:
        yield
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused


def _attentions(encoder: Encoder) -> list[Any]:
    blocks: Any = encoder.vit.blocks
    return [block.attn for block in blocks]
