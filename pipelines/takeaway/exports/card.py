"""The model card that lies in every exported folder as README.md."""

from __future__ import annotations

from typing import Any

import yaml

from lodisc import __version__
from lodisc.views import IMAGENET_MEAN, IMAGENET_STD
from pipelines.evaluation.scores import SCORES
from pipelines.takeaway.exports.trained import FINGERPRINT, Trained

FILE = "README.md"
TO_FILL_IN = "TO BE FILLED IN"
RECIPE = ("encoder", "model", "views", "optim", "seed")  # what made the weights; paths and addresses stay at home


def card(trained: Trained, library: str, load: str, notes: str = "") -> str:
    """Return the card as Markdown, its head as the Hugging Face Hub reads it.

    Args:
        trained: the encoder.
        library: that loads the folder, as the Hub names it.
        load: lines of Python that load it.
        notes: a paragraph on this form of export.
    """
    head = {
        "license": trained.license or TO_FILL_IN,
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "fine-grained", "lodisc"],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {trained.arch}, pretrained with LoDisc",
        f"A vision transformer that turns an image into {trained.encoder.feature_dim} features. It was pretrained "
        "without labels, by the method of [LoDisc](https://arxiv.org/abs/2403.04066), for fine-grained images. "
        "It is the encoder alone: there is no classifier.",
        f"## Load it\n\n```python\n{load}\n```",
        *([notes] if notes else []),
        _encoder(trained),
        _training(trained),
        _scores(trained),
        _licence(trained),
    ]
    return "\n\n".join(parts) + "\n"


def preprocessing(trained: Trained) -> str:
    """Return in words how an image becomes the encoder's input."""
    return (
        f"RGB, upright as EXIF says; resized (bicubic, antialiased) to a short side of {trained.short_side} px; "
        f"central crop of {trained.image_size} x {trained.image_size} px; divided by 255, less mean, divided by std; "
        "float32, channels first (B, 3, H, W)"
    )


def facts(trained: Trained) -> dict[str, str]:
    """Return as texts what a file without a card says of itself."""
    return {
        "producer": f"lodisc {__version__}",
        "arch": trained.arch,
        "image_size": str(trained.image_size),
        "patch_size": str(trained.patch_size),
        "depth": str(trained.depth),
        "feature_dim": str(trained.encoder.feature_dim),
        "step": str(trained.step),
        "license": trained.license or TO_FILL_IN,
        "preprocessing": preprocessing(trained),
        "short_side": str(trained.short_side),
        "mean": str(list(IMAGENET_MEAN)),
        "std": str(list(IMAGENET_STD)),
        **trained.fingerprints,
    }


def _encoder(trained: Trained) -> str:
    parameters = sum(parameter.numel() for parameter in trained.encoder.parameters())
    rows = {
        "architecture (timm)": f"`{trained.arch}`",
        "image size": f"{trained.image_size} px",
        "patch size": f"{trained.patch_size} px",
        "depth": f"{trained.depth} blocks",
        "parameters": f"{parameters:,}",
        "features": f"{trained.encoder.feature_dim}, the class token after the last norm",
        "preprocessing": preprocessing(trained),
        "mean": f"`{list(IMAGENET_MEAN)}`",
        "std": f"`{list(IMAGENET_STD)}`",
    }
    return "## Encoder\n\n" + _table(("", ""), rows)


def _training(trained: Trained) -> str:
    tags = {name.removeprefix(FINGERPRINT).replace("_", " "): tag for name, tag in trained.fingerprints.items()}
    rows = {
        "steps": str(trained.step),
        "started from": f"{_recipe(trained)['encoder']['weights']} weights",
        **{name: f"`{tag}`" for name, tag in sorted(tags.items())},
        "images": f"{TO_FILL_IN}: what they show, how many, where from",
        "MLflow run": f"`{trained.run_id}`",
        "made with": f"lodisc {__version__}",
    }
    recipe = yaml.safe_dump(_recipe(trained), sort_keys=False)
    return f"## Training\n\n{_table(('', ''), rows)}\n\nThe recipe:\n\n```yaml\n{recipe}```"


def _recipe(trained: Trained) -> dict[str, Any]:
    recipe = {name: trained.config[name] for name in RECIPE}
    weights: str = recipe["encoder"]["weights"]
    return recipe | {"encoder": recipe["encoder"] | {"weights": weights.replace("\\", "/").rsplit("/", 1)[-1]}}


def _scores(trained: Trained) -> str:
    if not trained.scores:
        return "## Scores\n\nNone are known of these weights. `lodisc evaluate` measures them."
    units = {name: SCORES[name.split("/", 1)[1]].unit for name in trained.scores}
    rows = {f"`{name}`": f"{value:.2f} {units[name]}".rstrip() for name, value in trained.scores.items()}
    return (
        f"## Scores\n\nAt step {trained.step}. `eval/` is of the images held out during pretraining, `test/` of those "
        f"given to `lodisc evaluate`.\n\n{_table(('', 'score'), rows)}"
    )


def _licence(trained: Trained) -> str:
    rows = {
        "these weights": trained.license or f"{TO_FILL_IN}, here and in the first lines of this file",
        "the images they were trained on": TO_FILL_IN,
        "the weights they started from": "none, they were random"
        if trained.config["encoder"]["weights"] == "random"
        else TO_FILL_IN,
    }
    return "## Licence\n\n" + _table(("of", "licence"), rows)


def _table(header: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [header, ("---", "---"), *rows.items()]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)
