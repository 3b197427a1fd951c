"""The search space: what is read, what is drawn from it, and what is refused by name."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tuning.space import Domain, grid_size, parse_space, plain


def test_every_kind_is_read() -> None:
    space = parse_space(
        {
            "model.temperature": {"log": [0.05, 0.5]},
            "model.mask_ratio": {"uniform": [0, 0.9]},
            "encoder.depth": {"int": [2, 4]},
            "model.pivots": {"choice": ["fused", "random"]},
            "views.crop_scale": {"grid": [[0.1, 1.0], [0.2, 1.0]]},
        }
    )
    assert space["model.temperature"] == Domain("log", (0.05, 0.5))
    assert space["model.mask_ratio"] == Domain("uniform", (0, 0.9))
    assert space["encoder.depth"] == Domain("int", (2, 4))
    assert space["model.pivots"] == Domain("choice", ("fused", "random"))
    assert space["views.crop_scale"] == Domain("grid", ([0.1, 1.0], [0.2, 1.0]))


@pytest.mark.parametrize(
    ("field", "kinds", "said"),
    [
        ("model.temperature", {"normal": [0, 1]}, "give one of uniform, log, int, choice, grid"),
        ("model.temperature", {"uniform": [0.1, 0.5], "log": [0.1, 0.5]}, "give one of"),
        ("model.temperature", {}, "give one of"),
        ("model.temperature", {"uniform": [0.1]}, r"needs two numbers, \[low, high\], got \[0.1\]"),
        ("model.temperature", {"uniform": ["low", "high"]}, "needs two numbers"),
        ("model.temperature", {"uniform": [False, True]}, "needs two numbers"),
        ("model.temperature", {"uniform": [0.5, 0.1]}, "needs low < high"),
        ("model.temperature", {"uniform": [0.1, math.inf]}, "needs low < high"),
        ("model.temperature", {"log": [0, 0.5]}, "log needs low > 0"),
        ("encoder.depth", {"int": [2.5, 4]}, "needs two whole numbers"),
        ("model.pivots", {"choice": []}, "choice needs at least one value"),
        ("optim.epochs", {"int": [1, 9]}, "cannot be searched: all trials have the same budget"),
        ("data.images", {"choice": ["a", "b"]}, "cannot be searched: all trials read the same images"),
        ("compute.workers", {"int": [1, 2]}, "cannot be searched: the sweep shares the cluster out"),
        ("name", {"choice": ["a"]}, "cannot be searched"),
    ],
)
def test_what_is_no_domain_is_refused_by_the_name_of_the_field(field: str, kinds: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"space\.{field}: .*{said}"):
        parse_space({field: kinds})


def test_lists_are_the_same_however_their_numbers_are_written() -> None:
    assert plain([0.2, 1]) == plain((0.2, 1.0)) == "[0.2, 1.0]"
    assert Domain("choice", ([0.2, 1],)).for_optuna() == Domain("choice", ((0.2, 1.0),)).for_optuna()


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(ValueError, match="space: there is nothing to search"):
        parse_space({})


def test_a_field_whose_name_only_begins_like_a_fixed_one_can_be_searched() -> None:
    assert "seed" in parse_space({"seed": {"grid": [0, 1]}})


@pytest.mark.parametrize(
    ("domain", "inside", "mean"),
    [
        (Domain("uniform", (0.4, 0.9)), lambda value: 0.4 <= value <= 0.9, 0.65),
        # The mean of log-uniform values is (high - low) / log(high / low).
        (Domain("log", (0.05, 0.5)), lambda value: 0.05 <= value <= 0.5, 0.45 / math.log(10)),
        (Domain("int", (2, 4)), lambda value: value in (2, 3, 4), 3.0),
        (Domain("choice", (1, 5)), lambda value: value in (1, 5), 3.0),
    ],
)
def test_what_ray_tune_draws_is_in_the_domain_and_distributed_over_it(domain: Domain, inside: Any, mean: float) -> None:
    import numpy as np

    random.seed(0)
    np.random.seed(0)
    sampler = domain.for_tune()
    values = [sampler.sample() for _ in range(4000)]
    assert all(map(inside, values))
    assert sum(values) / len(values) == pytest.approx(mean, rel=0.05)


def test_a_grid_is_every_combination() -> None:
    space = parse_space({"model.temperature": {"grid": [0.1, 0.2, 0.4]}, "model.mask_ratio": {"grid": [0.5, 0.7]}})
    assert space["model.temperature"].for_tune() == {"grid_search": [0.1, 0.2, 0.4]}
    assert grid_size(space) == 6


def test_optuna_analyses_the_same_domains() -> None:
    assert Domain("log", (0.05, 0.5)).for_optuna() == FloatDistribution(0.05, 0.5, log=True)
    assert Domain("uniform", (0.4, 0.9)).for_optuna() == FloatDistribution(0.4, 0.9)
    assert Domain("int", (2, 4)).for_optuna() == IntDistribution(2, 4)
    crops = Domain("choice", ([0.1, 1.0], [0.2, 1.0]))
    assert crops.for_optuna() == CategoricalDistribution(["[0.1, 1.0]", "[0.2, 1.0]"])
    assert plain([0.1, 1.0]) == "[0.1, 1.0]" and plain("fused") == "fused"
