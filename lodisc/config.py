"""The configs of encoder, objective and views: checked values, to be had without torch and timm, which take seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lodisc.bounds import bounds, require

LocalView = Literal["tokens", "pixels"]
Pivots = Literal["fused", "last", "rollout", "random"]
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which ViT, and what it starts from.

    Attributes:
        arch: name of a timm VisionTransformer with a class token.
        image_size: side of the square views, in pixels.
        patch_size: side of a patch, in pixels; None keeps the architecture's own.
        depth: number of blocks; None keeps the architecture's own.
        weights: `random` (drawn as MoCo v3 draws them), `timm` (timm's pretrained weights, downloaded once), or the
            path of a local state dict (.safetensors, or a .pt/.pth file, read with weights_only).
        freeze_patch_embed: leave the patch embedding as it starts (MoCo v3's "stop-grad conv1").
    """

    arch: str = "vit_base_patch16_224"
    image_size: int = 224
    patch_size: int | None = None
    depth: int | None = None
    weights: str = "random"
    freeze_patch_embed: bool = True

    def __post_init__(self) -> None:
        # Whether timm knows the architecture, `lodisc.encoder.require_known` says: that takes timm, and seconds.
        bounds(self, "encoder.", image_size="at least 1", patch_size="at least 1", depth="at least 1")
        require(
            not self.patch_size or self.image_size % self.patch_size == 0,
            f"encoder.image_size ({self.image_size}) must be a multiple of patch_size {self.patch_size}",
        )
        if self.weights not in ("random", "timm"):
            is_file = Path(self.weights).is_file()
            require(is_file, f"encoder.weights: {self.weights!r} is neither 'random', 'timm' nor a file")
            # Workers stand in other folders.
            object.__setattr__(self, "weights", str(Path(self.weights).absolute()))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The objective.

    Attributes:
        temperature: tau of the contrast.
        local_weight: weight of the local loss; 0 is MoCo v3 and skips the local pass.
        mask_ratio: fraction of patches that the local view drops.
        local_view: `pixels` blacks the dropped patches out, as the reference does; `tokens` leaves them out of the
            sequence, which costs about 1 - mask_ratio of a pass.
        pivots: how patches are chosen; all but `fused` are baselines.
        momentum: of the momentum encoder at the first step; it ends at 1.
        hidden_dim: width of projector and predictor.
        output_dim: width of the space in which views are compared.
        head_dropout: dropout in projector and predictor; the reference has 0.2, MoCo v3 none.
    """

    temperature: float = 0.2
    local_weight: float = 1.0
    mask_ratio: float = 0.7
    local_view: LocalView = "tokens"
    pivots: Pivots = "fused"
    momentum: float = 0.99
    hidden_dim: int = 4096
    output_dim: int = 768
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        bounds(
            self,
            "model.",
            temperature="> 0",
            local_weight="at least 0",
            mask_ratio="in [0, 1)",
            momentum="in [0, 1]",
            hidden_dim="at least 1",
            output_dim="at least 1",
            head_dropout="in [0, 1)",
        )
        for name, choice in (("local_view", get_args(LocalView)), ("pivots", get_args(Pivots))):
            value = getattr(self, name)
            require(value in choice, f"model.{name} must be one of {', '.join(choice)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """BYOL's asymmetric pair of augmentations, as MoCo v3 uses them (the defaults are the paper's).

    Attributes:
        crop_scale: smallest and largest area of the random resized crop, as a fraction of the image.
        jitter: strength of brightness, contrast, saturation and hue jitter.
        jitter_probability: probability of colour jitter.
        grey_probability: probability of dropping colour.
        blur_sigma: range of the Gaussian blur's standard deviation, in pixels of the view.
        blur_probability: probability of blur in view 1 and in view 2.
        solarise_probability: probability of solarising, view 2 only.
        flip_probability: probability of a horizontal flip.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: tuple[float, float] = (1.0, 0.1)
    solarise_probability: float = 0.2
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1,
            f"views.crop_scale must satisfy 0 < smallest <= largest <= 1, got {self.crop_scale}",
        )
        require(
            0 < self.blur_sigma[0] <= self.blur_sigma[1],
            f"views.blur_sigma must satisfy 0 < smallest <= largest, got {self.blur_sigma}",
        )
        require(self.jitter[3] <= 0.5, f"views.jitter must have a hue (last) of at most 0.5, got {self.jitter}")
        kinds = ("jitter", "grey", "blur", "solarise", "flip")
        bounds(self, "views.", jitter="at least 0", **{f"{kind}_probability": "in [0, 1]" for kind in kinds})
