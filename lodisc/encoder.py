"""The encoder: any timm ViT with a class token, with the two extra ways to run it that the method needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from lodisc.attention import recorded_attention
from lodisc.config import EncoderConfig
from lodisc.random_start import draw_weights
from lodisc.unpickle import load_plain


class Encoder(nn.Module):
    """A ViT that gives its class token as the image's features.

    Attributes:
        vit: the timm model.
        feature_dim: D, width of the features.
        patch_size: (height, width) of a patch in pixels.
        grid: (rows, columns) of patches in an image of the configured size.
        prefix_tokens: tokens before the patches: the class token and any registers.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Build the encoder.

        Raises:
            ValueError: the architecture cannot serve (no class token, no `attn.qkv`), the image size does not divide
                into patches, or the weights file does not fit.
        """
        super().__init__()
        self.vit = _create_vit(config)
        self.feature_dim: int = self.vit.num_features
        self.patch_size: tuple[int, int] = self.vit.patch_embed.patch_size
        self.prefix_tokens: int = self.vit.num_prefix_tokens
        if config.image_size % self.patch_size[0] or config.image_size % self.patch_size[1]:
            raise ValueError(f"encoder.image_size ({config.image_size}) must be a multiple of patch {self.patch_size}")
        self.grid = (config.image_size // self.patch_size[0], config.image_size // self.patch_size[1])
        if config.weights == "random":
            draw_weights(self.vit, self.grid)
        elif config.weights != "timm":
            _load_weights(self.vit, Path(config.weights))
        if config.freeze_patch_embed:
            self.vit.patch_embed.requires_grad_(False)

    def patches_of(self, images: Tensor) -> int:
        """Return N, how many patches each of `images` (B, 3, H, W) has."""
        return (images.shape[-2] // self.patch_size[0]) * (images.shape[-1] // self.patch_size[1])

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Encode images, or only some of their patches.

        Args:
            images: (B, 3, H, W), normalised; H and W are multiples of the patch size.
            kept: (B, K) int64 patch indices. The other patches leave the sequence after the position embedding, so
                the pass costs about K / N of a full one (MAE, arXiv 2111.06377). None keeps all.

        Returns:
            Features (B, D): the class token after the last norm.
        """
        return self._features(self._tokens(images, kept))

    def forward_with_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (B, 3, H, W), normalised.

        Returns:
            Features (B, D), and the tokens of the N patches after the last norm, (B, N, D), row by row of the grid.
        """
        tokens = self._tokens(images)
        return self._features(tokens), tokens[:, self.prefix_tokens :]

    def _tokens(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return all tokens after the last norm, (B, T, D)."""
        tokens = self.vit._pos_embed(self.vit.patch_embed(images))
        if kept is not None:
            tokens = self._select(tokens, kept)
        normed: Tensor = self.vit.norm(self.vit.blocks(self.vit.norm_pre(tokens)))
        return normed

    def _features(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.vit.forward_head(tokens, pre_logits=True)
        return features

    def _select(self, tokens: Tensor, kept: Tensor) -> Tensor:
        prefix, patches = tokens[:, : self.prefix_tokens], tokens[:, self.prefix_tokens :]
        index = kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return torch.cat([prefix, patches.gather(1, index)], dim=1)

    def forward_with_attention(self, images: Tensor, full: bool = False) -> tuple[Tensor, Tensor]:
        """Encode images (B, 3, H, W) and read the attention of all L layers on the way.

        Returns:
            Features (B, D), and log attention averaged over heads, float32 without gradient: (L, B, N) from the class
            token to the N patches, or with `full` (L, B, T, T) among all T tokens.
        """
        with recorded_attention(self.vit, full) as layers:
            features = self(images)
        attention = torch.stack(layers)
        return features, attention if full else attention[..., self.prefix_tokens :]


def require_known(config: EncoderConfig) -> None:
    """Refuse an architecture, or pretrained weights of it, that timm does not have.

    Raises:
        ValueError: naming the field.
    """
    if not timm.is_model(config.arch):
        raise ValueError(f"encoder.arch: timm {timm.__version__} has no model {config.arch!r}")
    pretrained = timm.is_model_pretrained(config.arch)
    if "." in config.arch and not pretrained:
        raise ValueError(f"encoder.arch: timm {timm.__version__} has no pretrained tag {config.arch!r}")
    if config.weights == "timm" and not pretrained:
        raise ValueError(f"encoder.weights: timm has no pretrained weights for encoder.arch {config.arch!r}")


def _create_vit(config: EncoderConfig) -> VisionTransformer:
    require_known(config)
    shape: dict[str, Any] = {"img_size": config.image_size, "patch_size": config.patch_size, "depth": config.depth}
    try:
        vit = timm.create_model(
            config.arch,
            pretrained=config.weights == "timm",
            num_classes=0,
            global_pool="token",
            dynamic_img_size=True,
            **{name: value for name, value in shape.items() if value is not None},
        )
    except (TypeError, AssertionError) as error:  # how timm refuses arguments that an architecture does not take
        raise ValueError(f"encoder.arch: {config.arch} is not a ViT with a class token: {error}") from error
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None:
        raise ValueError(f"encoder.arch: {config.arch} has no class token; take a timm VisionTransformer that has one")
    # Other layers may hold a `qkv` too, and attend otherwise: the rows read from it would be wrong without an error.
    if not all(type(getattr(block, "attn", None)) is Attention for block in vit.blocks):
        raise ValueError(f"encoder.arch: {config.arch} does not use timm's plain attention in every block")
    if type(vit.patch_embed) is not PatchEmbed:
        raise ValueError(
            f"encoder.arch: {config.arch} has a convolutional stem; its tokens are not patches of the image"
        )
    return vit


def _load_weights(vit: VisionTransformer, path: Path) -> None:
    """Load a timm state dict of the same architecture; its head is ignored, its positions resampled to the grid."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_plain(path)
    except Exception as error:
        raise ValueError(f"encoder.weights: {path} cannot be read as a state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"encoder.weights: {path} must hold a flat dict of tensors (a timm ViT's state_dict())")
    state = {name: value for name, value in state.items() if not name.startswith(("head", "fc_norm."))}
    try:
        vit.load_state_dict(checkpoint_filter_fn(state, vit))
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise ValueError(f"encoder.weights: {path} does not fit encoder.arch: {error}") from error
