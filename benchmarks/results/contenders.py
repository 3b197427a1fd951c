"""What benchmarks/results compares: the data sets, and the ways to pretrain on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.demo.images import generate_demo_images
from pipelines.run.config import PretrainConfig, load_recipe

SEEDS = (0, 1, 2)
SETS = ("demo", "grocery", "grocery-short", "grocery-wide")
DEMO_SEEDS = (2, 3)  # of the images: those of the seeds 0 and 1 served to find the recipe
MOCO, LODISC, PIXELS = "MoCo v3", "LoDisc", "LoDisc, pixels"
LONGER = "MoCo v3, longer"


@dataclass(frozen=True)
class Contender:
    """A way to pretrain.

    Attributes:
        name: as tables show it.
        overrides: fields of the recipe, by dotted name.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.name.lower()).split())


@dataclass(frozen=True)
class DataSet:
    """Images to pretrain and to be scored on, and the recipe for them.

    Attributes:
        name: as files and runs have it.
        recipe: of all runs.
        train: labelled images to pretrain on, and the gallery.
        watched: held-out images that curves are drawn of.
        test: held-out images that every encoder is scored on.
        longer: epochs of MoCo v3 that take LoDisc's time by costs.json, rounded up.
        overrides: fields, by dotted name, that are not the recipe's.
        variants: contenders beside the main ones.
    """

    name: str
    recipe: str
    train: str
    watched: str
    test: str
    longer: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Contender, ...] = ()

    def config(self, contender: Contender, seed: int, storage: str) -> PretrainConfig:
        """Return the config of a run."""
        images = {"data.images": self.train, "data.eval_images": self.watched}
        place = {"name": f"{self.name}-{contender.folder}-s{seed}", "storage": storage, "seed": seed}
        # On CPUs, as costs are; one of them, as the rest of the machine is for another data set's runs.
        share = {"compute.gpus": False, "compute.cpus_per_worker": 1}
        return load_recipe(self.recipe, {**images, **place, **share, **self.overrides, **contender.overrides})


# Earlier forms of the recipe `grocery`: SHORT had 8 epochs; WIDE also wide crops, twice the jitter, grey and blur.
SHORT = {"optim.epochs": 8}
WIDE = {
    **SHORT,
    "views.crop_scale": [0.3, 1.0],
    "views.jitter": [0.2, 0.2, 0.1, 0.02],
    "views.grey_probability": 0.1,
    "views.blur_sigma": [0.1, 1.0],
    "views.blur_probability": [0.5, 0.1],
}
GLOBAL_ALONE = {"model.local_weight": 0.0}
# What claims are made of.
MAIN = (
    Contender(MOCO, GLOBAL_ALONE),
    Contender(LODISC),
    Contender(PIXELS, {"model.local_view": "pixels"}),
)
RANDOM = Contender("random pivots", {"model.pivots": "random"})
# LoDisc with one field varied.
VARIANTS = (
    RANDOM,
    Contender("last-layer pivots", {"model.pivots": "last"}),
    Contender("rollout pivots", {"model.pivots": "rollout"}),
    Contender("mask ratio 0.5", {"model.mask_ratio": 0.5}),
    Contender("mask ratio 0.85", {"model.mask_ratio": 0.85}),
    Contender("local weight 0.5", {"model.local_weight": 0.5}),
    Contender("local weight 2", {"model.local_weight": 2.0}),
)
# Whose step takes as long as which other contender's.
STEP_OF = {LONGER: MOCO} | {way.name: LODISC for way in VARIANTS if "model.local_weight" in way.overrides}


def groups(data: DataSet) -> list[tuple[Contender, ...]]:
    """Return all contenders on a data set: those of a group see the same views, but the longer one."""
    longer = Contender(LONGER, {**GLOBAL_ALONE, "optim.epochs": data.longer})
    return [group for group in ((*MAIN, longer), data.variants) if group]


def data_set(name: str, grocery: Path, storage: Path) -> DataSet:
    """Return the Grocery Store photographs that lie in a folder, or the demo images of `make_demo_images`."""
    if name == "demo":
        made, others = (storage / f"demo-images-{seed}" for seed in DEMO_SEEDS)
        return DataSet(name, name, f"{made}/train", f"{others}/test", f"{made}/test", longer=25, variants=VARIANTS)
    train, val, test = (str(grocery / f"{split}.txt") for split in ("train", "val", "test"))
    recipe = DataSet(name, "grocery", train, val, test, longer=28, variants=(RANDOM,))
    short = replace(recipe, longer=10, overrides=SHORT, variants=())
    wide = replace(short, overrides=WIDE, variants=VARIANTS)
    return {"grocery": recipe, "grocery-short": short, "grocery-wide": wide}[name]


def make_demo_images(storage: Path) -> None:
    """Make the demo images to train and be scored on, and others to be watched on, where there are none."""
    for seed, train_per_class in zip(DEMO_SEEDS, (60, 2), strict=True):
        made = storage / f"demo-images-{seed}"
        generate_demo_images(str(made), seed=seed, train_per_class=train_per_class, test_per_class=20)
