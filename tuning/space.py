"""The search space: for each field of a recipe, the values that a sweep may give it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGES = ("uniform", "log", "int")
LISTS = ("choice", "grid")
Space = Mapping[str, Mapping[str, list[Any]]]
# Fields that a trial does not have to itself, or that make trials incomparable, with the reason.
FIXED = {
    "data": "all trials read the same images",
    "compute": "the sweep shares the cluster out",
    "checkpoint": "it does not change the encoder",
    "evaluation": "all trials are scored alike",
    "tracking": "the sweep keeps its trials together",
    "name": "the sweep names its trials",
    "storage": "the sweep keeps its trials together",
    "resume": "the sweep continues its trials",
    "profile": "it does not change the encoder",
    "optim.epochs": "all trials have the same budget",
}


@dataclass(frozen=True)
class Domain:
    """The values of one field.

    Attributes:
        kind: `uniform` or `log`, a number from low to high, uniform or uniform in its logarithm; `int`, a whole number
            from low to high, both included; `choice`, any of the values; `grid`, each of them in turn.
        values: [low, high], or the values.
    """

    kind: str
    values: tuple[Any, ...]

    def for_tune(self) -> Any:
        """Return what Ray Tune samples."""
        from ray import tune  # here, as `lodisc tune --help` need not wait for it

        match self.kind:
            case "uniform":
                return tune.uniform(*self.values)
            case "log":
                return tune.loguniform(*self.values)
            case "int":
                return tune.randint(self.values[0], self.values[1] + 1)
            case "grid":
                return tune.grid_search(list(self.values))
            case _:
                return tune.choice(list(self.values))

    def for_optuna(self) -> BaseDistribution:
        """Return the Optuna distribution of `plain` values, by which finished trials are analysed."""
        from optuna import distributions

        if self.kind == "int":
            return distributions.IntDistribution(*self.values)
        if self.kind in RANGES:
            low, high = self.values
            return distributions.FloatDistribution(low, high, log=self.kind == "log")
        return distributions.CategoricalDistribution([plain(value) for value in self.values])


def plain(value: Any) -> Any:
    """Return a value as Optuna and a chart's axis take it: lists as their JSON, whole numbers in them as any others."""
    if not isinstance(value, list | tuple):
        return value
    return json.dumps([float(each) if type(each) is int else each for each in value])


def parse_space(space: Space) -> dict[str, Domain]:
    """Return the domain of each field of `{"model.temperature": {"log": [0.05, 0.5]}}`.

    That the fields exist and take these values is for the recipe to say.

    Raises:
        ValueError: an empty space, a field that cannot be searched, an unknown kind, or values that are no domain.
    """
    if not space:
        raise ValueError("space: there is nothing to search; name a field, as in model.temperature: {log: [0.05, 0.5]}")
    for field in space:
        for fixed, reason in FIXED.items():
            if field == fixed or field.startswith(f"{fixed}."):
                raise ValueError(f"space.{field}: cannot be searched: {reason}")
    return {field: _domain(f"space.{field}", kinds) for field, kinds in space.items()}


def _domain(where: str, kinds: Mapping[str, list[Any]]) -> Domain:
    if len(kinds) != 1 or next(iter(kinds)) not in RANGES + LISTS:
        raise ValueError(f"{where}: give one of {', '.join(RANGES + LISTS)}, got {dict(kinds)}")
    ((kind, values),) = kinds.items()
    if kind in LISTS:
        if not values:
            raise ValueError(f"{where}: {kind} needs at least one value")
        return Domain(kind, tuple(values))
    number = int if kind == "int" else (int, float)
    if len(values) != 2 or not all(isinstance(value, number) and not isinstance(value, bool) for value in values):
        what = "whole numbers" if kind == "int" else "numbers"
        raise ValueError(f"{where}: {kind} needs two {what}, [low, high], got {values}")
    low, high = values
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{where}: {kind} needs low < high, got {values}")
    if kind == "log" and low <= 0:
        raise ValueError(f"{where}: log needs low > 0, got {values}")
    return Domain(kind, (low, high))


def grid_size(space: Mapping[str, Domain]) -> int:
    """Return the number of combinations of a space that consists of grids alone."""
    return math.prod(len(domain.values) for domain in space.values())
