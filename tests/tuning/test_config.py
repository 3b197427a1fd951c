"""The config of a sweep: what it refuses before anything starts, and what its trials share."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.run.config import DataConfig, load_recipe
from tuning.config import RANDOM_TRIALS, SweepConfig

LABELLED = DataConfig(images="photos", eval_images="held-out")


def sweep(**fields: Any) -> SweepConfig:
    return SweepConfig(**{"recipe": "grocery", "data": LABELLED, **fields})


def test_a_sweep_searches_temperature_mask_ratio_and_loss_weight_by_rank1_unless_told_otherwise() -> None:
    config = sweep()
    assert set(config.domains()) == {"model.temperature", "model.mask_ratio", "model.local_weight"}
    assert config.goal().name == "retrieval/rank1"
    assert config.trial_count() == RANDOM_TRIALS
    assert (config.sampler, config.scheduler) == ("optuna", "asha")


def test_without_held_out_images_the_effective_rank_is_tuned_on() -> None:
    assert sweep(data=DataConfig(images="photos")).goal().name == "rankme"


def test_the_base_is_the_recipe_with_the_images_and_overrides_of_the_sweep() -> None:
    base = sweep(overrides={"optim.epochs": 3, "model.temperature": 0.3}, storage="elsewhere").base()
    fields = {"data.images": "photos", "data.eval_images": "held-out", "storage": "elsewhere"}
    assert base == load_recipe("grocery", {**fields, "optim.epochs": 3, "model.temperature": 0.3})


def test_overrides_may_be_nested_and_leave_the_rest_of_a_section_alone() -> None:
    nested = sweep(overrides={"optim": {"epochs": 3}, "model": {"temperature": 0.3}}).base()
    assert nested == sweep(overrides={"optim.epochs": 3, "model.temperature": 0.3}).base()
    assert nested.optim.batch_size == load_recipe("grocery", {"data.images": "photos"}).optim.batch_size


def test_a_grid_has_as_many_trials_as_combinations() -> None:
    space = {"model.temperature": {"grid": [0.1, 0.2]}, "model.mask_ratio": {"grid": [0.5, 0.6, 0.7]}}
    assert sweep(sampler="grid", space=space).trial_count() == 6
    assert sweep(sampler="grid", space=space, trials=6).trial_count() == 6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"objective": "loss"}, "objective: loss cannot be tuned on"),
        ({"objective": "knn/fine", "data": DataConfig(images="photos")}, r"data\.eval_images"),
        ({"space": {"model.temprature": {"log": [0.1, 0.5]}}}, r"space\.model\.temprature: 0\.1 is no value of it"),
        ({"space": {"model.mask_ratio": {"uniform": [0.5, 1.5]}}}, r"space\.model\.mask_ratio: 1\.5 is no value"),
        ({"space": {"model.pivots": {"choice": ["fused", "best"]}}}, r"space\.model\.pivots: 'best' is no value"),
        ({"space": {"optim.epochs": {"int": [1, 4]}}}, "all trials have the same budget"),
        ({"overrides": {"model.temprature": 0.1}}, "temprature"),
        ({"overrides": {"data.images": "others"}}, r"overrides\.data\.images: a field of the sweep itself"),
        ({"overrides": {"name": "mine"}}, r"overrides\.name: a field of the sweep itself"),
        ({"space": {"encoder.depth": {"uniform": [2, 6]}}}, r"space\.encoder\.depth: 3\.4.* is no value of it"),
        ({"space": {"optim": {"choice": [{"epochs": 1}, {"epochs": 2}]}}}, r"space\.optim: a section of fields"),
        ({"recipe": "groceries"}, "groceries: no such file"),
        ({"sampler": "grid"}, r"space\.model\.temperature: the sampler grid needs a list of values"),
        ({"space": {"seed": {"grid": [0, 1]}}}, r"space\.seed: .*give choice instead of grid"),
        ({"sampler": "grid", "space": {"seed": {"grid": [0, 1]}}, "trials": 3}, "the grid has 2 combinations, got 3"),
        ({"grace_epochs": 25}, r"grace_epochs \(25\) exceeds the recipe's optim\.epochs \(24\)"),
        ({"grace_epochs": 0}, "grace_epochs must be at least 1"),
        ({"reduction_factor": 1}, "reduction_factor must be at least 2"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"concurrent": 0}, "concurrent must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"name": "a/b"}, "name must be a plain folder name"),
        ({"resume": True}, "resume needs the name"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sweep(**fields)
