"""The config of a pretraining run: one tree of frozen dataclasses, read from YAML recipes and dotted overrides.

It is to be had without torch, timm, Ray and MLflow, which take seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lodisc.bounds import bounds, require
from lodisc.config import EncoderConfig, ModelConfig, Precision, ViewConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from.

    Attributes:
        images: training images, `SRC` or `SRC@SPLIT`: a folder, list file, Parquet, WebDataset or official layout.
        eval_images: held-out labelled images to score the encoder on during pretraining.
    """

    images: str
    eval_images: str | None = None


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        epochs: passes over the training images.
        batch_size: global batch, over all workers.
        base_lr: peak learning rate for a batch of 256; the peak is base_lr * batch_size / 256.
        warmup_epochs: epochs of linear warm-up, may be fractional.
        weight_decay: AdamW's decoupled weight decay, on every parameter as in MoCo v3.
        clip_norm: largest gradient norm; None leaves gradients as they are.
        precision: number format of the forward and backward pass; auto is bf16 where the hardware has it.
    """

    epochs: int = 100
    batch_size: int = 256
    base_lr: float = 1.5e-4
    warmup_epochs: float = 10.0
    weight_decay: float = 0.5
    clip_norm: float | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        # Of a batch of one there is nothing to contrast.
        bounds(
            self,
            "optim.",
            epochs="at least 1",
            batch_size="at least 2",
            base_lr="> 0",
            weight_decay="at least 0",
            clip_norm="> 0",
        )
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"optim.warmup_epochs must be >= 0 and below optim.epochs ({self.epochs}), got {self.warmup_epochs}",
        )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What the run asks of the Ray cluster.

    Attributes:
        workers: training workers; each holds a replica of the model and an equal share of the batch.
        min_workers: go on with as few as so many while nodes are missing, in equal shares of the same batch; None waits
            for all.
        restarts: how often in a row a run that loses workers is taken up again from its last checkpoint without having
            got any further.
        gpus: whether each worker takes a GPU; None takes one where the cluster has enough.
        cpus_per_worker: CPUs that Ray reserves for each worker; None leaves a share for the data pipeline.
    """

    workers: int = 1
    min_workers: int | None = None
    restarts: int = 3
    gpus: bool | None = None
    cpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        bounds(self, "compute.", workers="at least 1", restarts="at least 0", cpus_per_worker="> 0")
        require(
            self.min_workers is None or 1 <= self.min_workers <= self.workers,
            f"compute.min_workers must be from 1 to compute.workers ({self.workers}), got {self.min_workers}",
        )

    def counts(self, batch_size: int) -> list[int]:
        """Return how many workers a run may have, most first: those numbers that divide the batch."""
        least = self.min_workers or self.workers
        return [count for count in range(self.workers, least - 1, -1) if batch_size % count == 0]


@dataclass(frozen=True, kw_only=True)
class CheckpointingConfig:
    """When the state of the run is saved: at the end of every epoch, and every so many steps.

    Attributes:
        every_steps: also save every so many steps; None saves at the end of epochs only.
        keep: how many checkpoints stay on disk, the newest first.
    """

    every_steps: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        bounds(self, "checkpoint.", every_steps="at least 1", keep="at least 1")


@dataclass(frozen=True, kw_only=True)
class InTrainingConfig:
    """How the encoder is watched while it trains.

    Attributes:
        every_epochs: score the encoder and draw its pivots every so many epochs; the last epoch always is.
        max_images: at most so many images of the gallery and of the held-out set, drawn by the seed.
        log_every_steps: steps between two points of the training curves.
    """

    every_epochs: int = 5
    max_images: int = 3000
    log_every_steps: int = 1

    def __post_init__(self) -> None:
        bounds(self, "evaluation.", every_epochs="at least 1", max_images="at least 2", log_every_steps="at least 1")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow keeps the run.

    Attributes:
        uri: an MLflow store, as http://host:5000 or sqlite:///path; None keeps mlflow.db and mlartifacts/ in the run
            storage.
        experiment: the MLflow experiment that lists the run.
    """

    uri: str | None = None
    experiment: str = "lodisc"

    def __post_init__(self) -> None:
        require(self.experiment.strip(), "tracking.experiment must not be empty")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
        data: where the images come from.
        encoder: the ViT and its initial weights.
        model: the LoDisc objective.
        views: the two random views.
        optim: optimiser and schedule.
        compute: workers and devices.
        checkpoint: when state is saved.
        evaluation: how the encoder is watched while it trains.
        tracking: where MLflow keeps the run.
        name: the run's name and folder; None makes one from the time.
        profile: trace so many steps with torch's profiler, after one that warms it up; None traces none.
        seed: fixes initial weights, order of images, views and random pivots.
        storage: folder or URI that holds the runs; every node must reach it.
        resume: continue the run of this name from its last checkpoint.
    """

    data: DataConfig
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    evaluation: InTrainingConfig = field(default_factory=InTrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    name: str | None = None
    profile: int | None = None
    seed: int = 0
    storage: str = "runs"
    resume: bool = False

    def __post_init__(self) -> None:
        require(
            self.optim.batch_size % self.compute.workers == 0,
            f"optim.batch_size ({self.optim.batch_size}) must be a multiple of compute.workers {self.compute.workers}",
        )
        bounds(self, profile="at least 1", seed="at least 0")
        require_name(self.name, self.resume)


def require_name(name: str | None, resume: bool, of: str = "run") -> None:
    """Refuse a name that is no folder's, and to resume what has none."""
    require(
        name is None or ("/" not in name and name not in ("", ".", "..")),
        f"name must be a plain folder name, got {name!r}",
    )
    require(not resume or name is not None, f"resume needs the name of the {of} to continue")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config tree as nested dicts of plain YAML values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(asdict(config))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def recipe_names(package: str = "pipelines") -> list[str]:
    """Return the names of the recipes that are shipped with a package: of runs, or of sweeps with `tuning`."""
    folder = files(package) / "recipes"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def recipe_path(name_or_path: str, package: str = "pipelines") -> str:
    """Return the file of a recipe's name that is shipped with the package, or the path itself where it is a file.

    Raises:
        ValueError: neither a shipped recipe nor a file.
    """
    names = recipe_names(package)
    if name_or_path in names:
        return str(files(package) / "recipes" / f"{name_or_path}.yaml")
    if Path(name_or_path).is_file():
        return name_or_path
    raise ValueError(f"recipe {name_or_path}: no such file, and no shipped recipe of that name ({', '.join(names)})")


def load_recipe(name_or_path: str, overrides: Mapping[str, Any]) -> PretrainConfig:
    """Read a recipe and set fields by dotted name, as `{"model.temperature": 0.1}`.

    Raises:
        ValueError: an unknown recipe or field, or a value that the field refuses.
    """
    return config_from(yaml.safe_load(Path(recipe_path(name_or_path)).read_text()), overrides, name_or_path)


def config_from(tree: Mapping[str, Any], overrides: Mapping[str, Any], origin: str) -> PretrainConfig:
    """Return the config of nested plain values, with fields set by dotted name.

    Args:
        tree: as `to_dict` gives it and recipes hold it; it is left as it is.
        overrides: as `{"model.temperature": 0.1}`.
        origin: what error messages call the tree.

    Raises:
        ValueError: an unknown field, or a value that the field refuses.
    """
    own = copy.deepcopy(dict(tree))
    for name, value in overrides.items():
        *parents, leaf = name.split(".")
        node = own
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PretrainConfig)
    try:
        values = parser.parse_object(own)
    except ArgumentError as error:
        raise ValueError(f"{origin}: {error}") from error
    return PretrainConfig(**vars(parser.instantiate(values)))
