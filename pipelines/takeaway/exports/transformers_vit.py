"""A folder that transformers loads as a ViTModel, without code of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lodisc.plain_vit import departures, norm_epsilon, transformers_weights
from lodisc.views import IMAGENET_MEAN, IMAGENET_STD
from pipelines.takeaway.exports import card, weights
from pipelines.takeaway.exports.trained import Trained

BICUBIC = 3  # PIL's number of it
LOAD = """\
from transformers import AutoImageProcessor, ViTModel
processor = AutoImageProcessor.from_pretrained(".", backend="pil")  # or "YOU/NAME" once it is on the Hub
model = ViTModel.from_pretrained(".", add_pooling_layer=False)
features = model(**processor(image.convert("RGB"), return_tensors="pt")).last_hidden_state[:, 0]"""

NOTES = (
    "There is no pooler: the features are the class token of `last_hidden_state`. Without `backend`, transformers "
    "resizes tensors instead of PIL images, and pixels differ by a grey level here and there."
)


def refuse(trained: Trained) -> None:
    """Raise ValueError where the ViTModel of transformers has no such ViT, saying why."""
    if reasons := departures(trained.encoder.vit):
        raise ValueError(
            f"to: the ViTModel of transformers cannot hold {trained.arch}, which has {', '.join(reasons)}; export to "
            "timm, which transformers loads as a TimmWrapperModel"
        )


def write(trained: Trained, path: Path) -> None:
    """Write weights, config, the image processor's config and the card to the new folder `path`."""
    path.mkdir()
    weights.save_weights(transformers_weights(trained.encoder.vit), path / weights.FILE)
    (path / "config.json").write_text(json.dumps(config(trained), indent=2) + "\n")
    (path / "preprocessor_config.json").write_text(json.dumps(processor(trained), indent=2) + "\n")
    (path / card.FILE).write_text(card.card(trained, "transformers", LOAD, NOTES))


def check(trained: Trained, path: Path) -> float:
    """Load the folder as its card says, and return the largest difference of its features from the encoder's."""
    from transformers import ViTModel, logging

    logging.disable_progress_bar()
    model = ViTModel.from_pretrained(path, add_pooling_layer=False)
    images = trained.images(2)
    with torch.inference_mode():
        return trained.difference(images, model(pixel_values=images).last_hidden_state[:, 0])


def config(trained: Trained) -> dict[str, Any]:
    """Return the content of a ViTModel's config.json."""
    block: Any = trained.encoder.vit.blocks[0]
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "image_size": trained.image_size,
        "patch_size": trained.patch_size,
        "num_channels": 3,
        "hidden_size": trained.encoder.feature_dim,
        "num_hidden_layers": trained.depth,
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": norm_epsilon(trained.encoder.vit),
        "qkv_bias": True,
    }


def processor(trained: Trained) -> dict[str, Any]:
    """Return the content of preprocessor_config.json.

    ViT's own processor squeezes an image to a square; BiT's resizes its short side and crops, as `eval_view` does.
    """
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": trained.short_side},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": trained.image_size, "width": trained.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
