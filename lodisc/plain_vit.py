"""A plain ViT's weights under the names that other libraries give them.

"Plain" is the ViT of Dosovitskiy et al. (arXiv 2010.11929, eq. 1 to 4), which torchvision and transformers implement
too. timm's VisionTransformer can be more: registers, layer scale, norms of queries and keys, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

# Of a block's tensors; the queries, keys and values, which timm holds in one matrix, are apart.
TORCHVISION_BLOCK = {
    "norm1": "ln_1",
    "attn.proj": "self_attention.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}
TRANSFORMERS_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def departures(vit: VisionTransformer) -> list[str]:
    """Return in what a ViT differs from the plain one, in a few words each; empty where it does not.

    A plain ViT has one epsilon in all its layer norms, which `norm_epsilon` tells.
    """
    found = list(_departures_outside_blocks(vit))
    for block in vit.blocks:
        found += [reason for reason in _departures_of_block(block) if reason not in found]
    if len({norm.eps for norm in vit.modules() if isinstance(norm, nn.LayerNorm)}) > 1:
        found.append("layer norms of different epsilon")
    return found


def norm_epsilon(vit: VisionTransformer) -> float:
    """Return the epsilon of a plain ViT's layer norms."""
    assert isinstance(vit.norm, nn.LayerNorm)
    return vit.norm.eps


def torchvision_weights(vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a plain ViT's weights as torchvision's VisionTransformer names them, without heads."""
    state = vit.state_dict()
    weights = {
        "class_token": state["cls_token"],
        "conv_proj.weight": state["patch_embed.proj.weight"],
        "conv_proj.bias": state["patch_embed.proj.bias"],
        "encoder.pos_embedding": state["pos_embed"],
        "encoder.ln.weight": state["norm.weight"],
        "encoder.ln.bias": state["norm.bias"],
    }
    for number in range(len(vit.blocks)):
        block, theirs = f"blocks.{number}", f"encoder.layers.encoder_layer_{number}"
        weights |= _renamed(state, block, theirs, TORCHVISION_BLOCK)
        for kind in ("weight", "bias"):
            weights[f"{theirs}.self_attention.in_proj_{kind}"] = state[f"{block}.attn.qkv.{kind}"]
    return weights


def transformers_weights(vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a plain ViT's weights as the ViTModel of transformers names them in its files, without pooler."""
    state = vit.state_dict()
    weights = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for number in range(len(vit.blocks)):
        block, theirs = f"blocks.{number}", f"encoder.layer.{number}"
        weights |= _renamed(state, block, theirs, TRANSFORMERS_BLOCK)
        for kind in ("weight", "bias"):
            parts = state[f"{block}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                weights[f"{theirs}.attention.attention.{name}.{kind}"] = part.contiguous()
    return weights


def _renamed(state: Mapping[str, Tensor], ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{theirs}.{new}.{kind}": state[f"{ours}.{old}.{kind}"]
        for old, new in names.items()
        for kind in ("weight", "bias")
    }


def _departures_outside_blocks(vit: VisionTransformer) -> Iterator[str]:
    if vit.num_prefix_tokens != 1:
        yield "registers beside the class token"
    if vit.pos_embed is None or vit.no_embed_class:
        yield "no position embedding of the class token"
    if vit.patch_embed.proj.bias is None:
        yield "no bias in the patch embedding"
    if not _is_identity(vit.patch_embed.norm):
        yield "a norm in the patch embedding"
    if not _is_identity(vit.norm_pre):
        yield "a norm before the blocks"
    if not isinstance(vit.norm, nn.LayerNorm) or not _is_identity(vit.fc_norm):
        yield "no layer norm after the blocks"


def _departures_of_block(block: Any) -> Iterator[str]:
    if type(block) is not Block:
        yield f"blocks of another kind ({type(block).__name__})"
        return
    attention: Any = block.attn
    mlp: Any = block.mlp
    if not (isinstance(block.norm1, nn.LayerNorm) and isinstance(block.norm2, nn.LayerNorm)):
        yield "norms other than layer norm"
    if not (_is_identity(block.ls1) and _is_identity(block.ls2)):
        yield "layer scale"
    if not (_is_identity(attention.q_norm) and _is_identity(attention.k_norm)):
        yield "norms of queries and keys"
    if not _is_identity(getattr(attention, "norm", None)) or getattr(attention, "gate", None) is not None:
        yield "a norm or gate in the attention"
    if attention.qkv.bias is None or attention.proj.bias is None:
        yield "no bias in the attention"
    if attention.num_heads * attention.head_dim != attention.qkv.in_features:
        yield "heads that are not as wide together as the tokens"
    if type(mlp) is not Mlp or not _is_identity(mlp.norm) or mlp.fc1.bias is None:
        yield f"another MLP ({type(mlp).__name__})"
    elif type(mlp.act) is not nn.GELU or mlp.act.approximate != "none":
        yield f"another activation ({type(mlp.act).__name__})"


def _is_identity(module: object) -> bool:
    return module is None or isinstance(module, nn.Identity)
