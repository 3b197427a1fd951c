"""LoDisc: a MoCo v3 global branch, and a local branch on the patches that the momentum encoder attends to."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lodisc.config import EncoderConfig, ModelConfig
from lodisc.encoder import Encoder
from lodisc.heads import predictor, projector
from lodisc.local_view import mask_pixels
from lodisc.loss import contrastive_loss
from lodisc.pivots import keep_patches, pivot_scores

Pair = tuple[Tensor, Tensor]


class LoDisc(nn.Module):
    """The training model: encoder, projector and predictor, and the momentum copies of the first two."""

    def __init__(self, encoder: EncoderConfig, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder)
        dropout = config.head_dropout
        self.projector = projector(self.encoder.feature_dim, config.hidden_dim, config.output_dim, dropout)
        self.predictor = predictor(config.output_dim, config.hidden_dim, dropout)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    @torch.no_grad()
    def update_momentum(self, momentum: float) -> None:
        """theta' <- m theta' + (1 - m) theta, for all parameters at once. Call it exactly once a step."""
        ours: list[Tensor] = [*self.momentum_encoder.parameters(), *self.momentum_projector.parameters()]
        theirs: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - momentum)

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare two normalised views (B, 3, H, W) of the same images over the global batch.

        L = L_g + local_weight * L_l, with L_g = ctr(q1, k2) + ctr(q2, k1) and the same for the local keys
        (METHOD: global branch, local branch).

        Returns:
            The loss, a scalar with gradient, and detached scalars of this worker: `loss`, `loss/global`,
            `loss/local`, `contrastive/top1` (percent), `feature/std`, `feature/effective_rank`, `pivots/entropy`
            (0 to 1) and `pivots/overlap` (0 to 1). Those of the local branch are absent where local_weight is 0.
        """
        views = torch.cat([view1, view2])
        features = self.encoder(views)
        q1, q2 = (self.predictor(self.projector(half)) for half in features.chunk(2))
        keys, local_keys, pivots = self._keys(views)

        loss, top1 = _symmetric((q1, q2), keys, self.config.temperature)
        metrics = {"loss/global": loss.detach(), "contrastive/top1": top1, **_spread(features)}
        if local_keys is not None:
            local_loss, _ = _symmetric((q1, q2), local_keys, self.config.temperature)
            loss = loss + self.config.local_weight * local_loss
            metrics |= {"loss/local": local_loss.detach(), **pivots}
        return loss, {"loss": loss.detach(), **metrics}

    @torch.no_grad()
    def _keys(self, views: Tensor) -> tuple[Pair, Pair | None, dict[str, Tensor]]:
        """Return the keys of both views, and of their local views where there is a local branch."""
        if self.config.local_weight == 0:
            return self._project(self.momentum_encoder(views)), None, {}
        features, scores = pivot_scores(self.momentum_encoder, views, self.config.pivots)
        kept = keep_patches(scores, self.config.mask_ratio)
        if self.config.local_view == "tokens":
            local = self.momentum_encoder(views, kept)
        else:
            local = self.momentum_encoder(mask_pixels(views, kept, self.encoder.patch_size))
        return self._project(features), self._project(local), _pivot_metrics(scores, kept)

    def _project(self, features: Tensor) -> Pair:
        # One view at a time: batch norm's statistics are a view's, as MoCo v3 computes them.
        first, second = features.chunk(2)
        return self.momentum_projector(first), self.momentum_projector(second)


def _symmetric(queries: Pair, keys: Pair, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ctr(q1, k2) + ctr(q2, k1) and their mean top-1 accuracy."""
    loss12, top12 = contrastive_loss(queries[0], keys[1], temperature)
    loss21, top21 = contrastive_loss(queries[1], keys[0], temperature)
    return loss12 + loss21, (top12 + top21) / 2


@torch.no_grad()
def _spread(features: Tensor) -> dict[str, Tensor]:
    """Tell a collapse: how widely the encoder's features (B, D) are spread, and over how many directions.

    feature/std: mean over dimensions of the standard deviation of unit features, times sqrt(D): 1 when spread evenly,
    0 when collapsed. feature/effective_rank: participation ratio (tr C)^2 / tr(C^2) of their covariance, from 1 to
    min(B, D); it needs no eigenvalues.
    """
    unit = nn.functional.normalize(features.detach().float(), dim=1)
    centred = unit - unit.mean(dim=0)
    gram = centred @ centred.T if len(unit) < unit.shape[1] else centred.T @ centred
    rank = gram.trace().square() / gram.square().sum().clamp_min(1e-12)
    return {"feature/std": unit.std(dim=0).mean() * unit.shape[1] ** 0.5, "feature/effective_rank": rank}


def _pivot_metrics(scores: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Describe pivots of both views, scores (2B, N) and kept (2B, K).

    pivots/entropy: of the scores as a distribution over patches, 1 when uniform. pivots/overlap: fraction of kept
    places that the two views of an image share.
    """
    log_p = scores.log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1).mean() / torch.tensor(float(scores.shape[1])).log()
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, kept, True)
    first, second = chosen.chunk(2)
    overlap = (first & second).float().sum(dim=1).mean() / kept.shape[1]
    return {"pivots/entropy": entropy, "pivots/overlap": overlap}
