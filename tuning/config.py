"""The config of a sweep, and the recipe that its trials share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from lodisc.bounds import bounds
from pipelines.evaluation.scores import Score
from pipelines.run.config import DataConfig, PretrainConfig, TrackingConfig, flatten, load_recipe, require_name, to_dict
from tuning.objective import find_objective
from tuning.space import Domain, grid_size, parse_space

RANDOM_TRIALS = 16
OWN = ("data", "tracking", "name", "storage", "resume")  # what a sweep has itself of a run's fields


def default_space() -> dict[str, dict[str, list[Any]]]:
    return {
        "model.temperature": {"log": [0.05, 0.5]},
        "model.mask_ratio": {"uniform": [0.4, 0.9]},
        "model.local_weight": {"uniform": [0.0, 2.0]},
    }


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over the fields of a recipe.

    Attributes:
        recipe: of every trial: the name of a shipped one for pretraining, or a YAML file.
        data: where the images come from.
        overrides: fields of the recipe, by dotted name, that all trials have otherwise.
        space: the searched fields by dotted name, each with `uniform`, `log` or `int` [low, high], or with `choice` or
            `grid` and a list of values.
        objective: the score to tune on, knn/fine, knn/coarse, retrieval/rank1, retrieval/rank5 or retrieval/map of the
            held-out images, or without labels rankme or align_uniform; None takes retrieval/rank1 where there are
            held-out images, else rankme.
        sampler: how values are chosen: by Optuna's TPE from the trials so far, at random, or every combination.
        scheduler: what stops trials that fall behind: successive halving (asha), the median rule, or nothing.
        grace_epochs: no trial is stopped before.
        reduction_factor: asha lets one trial in so many go on from each rung to the next, so many times as many epochs.
        trials: how many; None is 16, or all combinations of a grid.
        concurrent: trials side by side; None takes as many as the cluster holds, up to 8.
        tracking: where MLflow keeps the sweep.
        name: the sweep's name and folder; None makes one from the time.
        seed: of the sampler. Trials have the recipe's seed.
        storage: folder or URI that holds the sweep; every node must reach it.
        resume: continue the sweep of this name.
    """

    recipe: str
    data: DataConfig
    overrides: dict[str, Any] = field(default_factory=dict)
    space: dict[str, dict[str, list[Any]]] = field(default_factory=default_space)
    objective: str | None = None
    sampler: Literal["optuna", "random", "grid"] = "optuna"
    scheduler: Literal["asha", "median", "none"] = "asha"
    grace_epochs: int = 1
    reduction_factor: int = 3
    trials: int | None = None
    concurrent: int | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    name: str | None = None
    seed: int = 0
    storage: str = "runs"
    resume: bool = False

    def __post_init__(self) -> None:
        bounds(
            self,
            grace_epochs="at least 1",
            reduction_factor="at least 2",
            trials="at least 1",
            concurrent="at least 1",
            seed="at least 0",
        )
        require_name(self.name, self.resume, "sweep")
        for name in flatten(self.overrides):
            if name.split(".")[0] in OWN:
                raise ValueError(f"overrides.{name}: a field of the sweep itself; set it there")
        _require_grids(self.sampler, self.domains(), self.trials)
        self.goal()
        _try_values(self)

    def domains(self) -> dict[str, Domain]:
        return parse_space(self.space)

    def goal(self) -> Score:
        """Return the objective, chosen by what there is to score on where none is named."""
        held_out = self.data.eval_images is not None
        return find_objective(self.objective or ("retrieval/rank1" if held_out else "rankme"), self.space, held_out)

    def trial_count(self) -> int:
        return grid_size(self.domains()) if self.sampler == "grid" else self.trials or RANDOM_TRIALS

    def base(self) -> PretrainConfig:
        """Return what all trials share: the recipe with the sweep's images and overrides."""
        return load_recipe(self.recipe, self.shared_fields())

    def shared_fields(self) -> dict[str, Any]:
        images = {"data.images": self.data.images, "data.eval_images": self.data.eval_images}
        return {**images, **flatten(self.overrides), "storage": self.storage, "resume": False}


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which sweep to report.

    Attributes:
        sweep: its name.
        storage: folder that holds the sweep.
        tracking: the MLflow store, where it is not in the storage.
        objective: another score to compare the trials by than the one that they were tuned on.
        output: folder for the pictures, the table and best.yaml; None prints only.
    """

    sweep: str
    storage: str = "runs"
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    objective: str | None = None
    output: str | None = None


def _require_grids(sampler: str, space: dict[str, Domain], trials: int | None) -> None:
    """Refuse a mixture of grids with values drawn at random, of which nobody could say how many trials it has."""
    kind = "grid" if sampler == "grid" else "random draws"
    wrong = [name for name, domain in space.items() if (domain.kind == "grid") != (sampler == "grid")]
    if wrong and sampler == "grid":
        raise ValueError(f"space.{wrong[0]}: the sampler grid needs a list of values, as in {{grid: [1, 2]}}")
    if wrong:
        raise ValueError(f"space.{wrong[0]}: the sampler {sampler} makes {kind}: give choice instead of grid")
    if sampler == "grid" and trials is not None and trials != grid_size(space):
        raise ValueError(f"trials: the grid has {grid_size(space)} combinations, got {trials}; leave trials out")


def _try_values(sweep: SweepConfig) -> None:
    """Make a config of every end of every domain, so that an impossible value is refused before any trial starts.

    And of a value between, as not every field that takes whole numbers takes others.
    """
    base = sweep.base()
    sections = {name.rpartition(".")[0] for name in flatten(to_dict(base))}
    if sweep.scheduler != "none" and sweep.grace_epochs > base.optim.epochs:
        raise ValueError(f"grace_epochs ({sweep.grace_epochs}) exceeds the recipe's optim.epochs ({base.optim.epochs})")
    for name, domain in sweep.domains().items():
        if name in sections:
            raise ValueError(f"space.{name}: a section of fields; name one of them, as in model.temperature")
        values = list(domain.values)
        if domain.kind in ("uniform", "log"):
            values.append(values[0] + (values[1] - values[0]) / math.e)
        for value in values:
            try:
                load_recipe(sweep.recipe, sweep.shared_fields() | {name: value})
            except ValueError as error:
                raise ValueError(f"space.{name}: {value!r} is no value of it: {error}") from error
