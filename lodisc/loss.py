"""The contrastive loss (InfoNCE, symmetrised by its caller)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lodisc.distributed import gather, rank


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tell each query's own key from all other keys of the global batch.

    ctr(q, k) = 2 tau * cross_entropy(normalize(q) @ normalize(k_all).T / tau, own index), in float32 (float64 for
    float64 input), with k_all gathered over workers.

    Args:
        queries: (B, D), with gradient.
        keys: (B, D); no gradient flows into them.
        temperature: tau > 0.

    Returns:
        The loss, a scalar averaged over the B queries, and the detached top-1 accuracy of the contrast in percent.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q = F.normalize(_at_least_float32(queries), dim=1)
        k = gather(F.normalize(_at_least_float32(keys.detach()), dim=1))
        logits = q @ k.T / temperature
        own = torch.arange(len(q), device=q.device) + rank() * len(q)
        loss = 2 * temperature * F.cross_entropy(logits, own)
        top1 = (logits.detach().argmax(dim=1) == own).float().mean() * 100
    return loss, top1


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
