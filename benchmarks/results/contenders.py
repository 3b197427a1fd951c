"""What benchmarks/results compares: the data sets, and the ways to pretrain on each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.config import PretrainConfig, load_recipe
from pipelines.demo_images import generate_demo_images

SEEDS = (0, 1, 2)
SETS = ("demo", "grocery")
MOCO, LODISC, LONGER = "MoCo v3", "LoDisc", "MoCo v3, for LoDisc's time"


@dataclass(frozen=True)
class Contender:
    """A way to pretrain.

    Attributes:
        name: as tables show it.
        overrides: fields of the recipe, by dotted name.
        length: epochs, as a share of the recipe's; rounded up.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    length: float = 1.0

    @property
    def folder(self) -> str:
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.name.lower()).split())


@dataclass(frozen=True)
class DataSet:
    """Images to pretrain and to be scored on.

    Attributes:
        name: of the recipe, too.
        train: labelled images to pretrain on, and the gallery.
        watched: held-out images that curves are drawn of.
        test: held-out images that every encoder is scored on.
        own_views: fields of the views with which MoCo v3 did best on `watched`, where they are not the recipe's.
    """

    name: str
    train: str
    watched: str
    test: str
    own_views: Mapping[str, Any] = field(default_factory=dict)

    def config(self, contender: Contender, seed: int, storage: str) -> PretrainConfig:
        """Return the config of a run."""
        images = {"data.images": self.train, "data.eval_images": self.watched}
        place = {"name": f"{self.name}-{contender.folder}-s{seed}", "storage": storage, "seed": seed}
        # On CPUs, as costs are; one of them, as the rest of the machine is for another data set's runs.
        share = {"compute.gpus": False, "compute.cpus_per_worker": 1}
        config = load_recipe(self.name, {**images, **place, **share, **contender.overrides})
        epochs = math.ceil(config.optim.epochs * contender.length - 1e-9)
        return replace(config, optim=replace(config.optim, epochs=epochs))


# What claims are made of, and what is varied about it one field at a time.
MAIN = (
    Contender(MOCO, {"model.local_weight": 0.0}),
    Contender(LODISC),
    Contender("LoDisc, pixels", {"model.local_view": "pixels"}),
)
VARIANTS = (
    Contender("random pivots", {"model.pivots": "random"}),
    Contender("last-layer pivots", {"model.pivots": "last"}),
    Contender("rollout pivots", {"model.pivots": "rollout"}),
    Contender("mask ratio 0.5", {"model.mask_ratio": 0.5}),
    Contender("mask ratio 0.85", {"model.mask_ratio": 0.85}),
    Contender("local weight 0.5", {"model.local_weight": 0.5}),
    Contender("local weight 2", {"model.local_weight": 2.0}),
)


def longer(data: DataSet, share: float) -> tuple[Contender, ...]:
    """Return MoCo v3 with `share` times the recipe's epochs: with its views, and with those that suit it."""
    plain = replace(MAIN[0], name=LONGER, length=share)
    if not data.own_views:
        return (plain,)
    return plain, replace(plain, name=f"{LONGER}, own views", overrides={**plain.overrides, **data.own_views})


def data_set(name: str, grocery: Path, storage: Path) -> DataSet:
    """Return the Grocery Store photographs, or demo images, which are made where there are none.

    Demo images of the seeds 0 and 1 served to find the recipe, so these are others.
    """
    if name == "grocery":
        train, val, test = (str(grocery / f"{split}.txt") for split in ("train", "val", "test"))
        views = {"views.crop_scale": [0.08, 0.6], "views.jitter": [0.1, 0.1, 0.05, 0.0]}
        plain = {"views.grey_probability": 0.0, "views.blur_probability": [0.0, 0.0]}
        return DataSet(name, train, val, test, views | plain)
    made, others = storage / "demo-images-2", storage / "demo-images-3"
    generate_demo_images(str(made), seed=2, train_per_class=60, test_per_class=20)
    generate_demo_images(str(others), seed=3, train_per_class=2, test_per_class=20)
    return DataSet(name, f"{made}/train", f"{others}/test", f"{made}/test")
