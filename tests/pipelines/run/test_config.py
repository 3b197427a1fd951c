"""The config tree: recipes, overrides, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.run.config import (
    CheckpointingConfig,
    ComputeConfig,
    DataConfig,
    InTrainingConfig,
    OptimConfig,
    PretrainConfig,
    load_recipe,
    recipe_names,
    recipe_path,
    to_dict,
)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name: str) -> None:
    config = load_recipe(name, {"data.images": "photos"})
    assert config.data.images == "photos"
    header = Path(recipe_path(name)).read_text().splitlines()[0]
    assert header.startswith("# ")


def test_overrides_reach_nested_fields() -> None:
    overrides = {
        "data.images": "photos",
        "model.temperature": 0.07,
        "views.crop_scale": [0.3, 1.0],
        "optim.clip_norm": None,
        "resume": False,
    }
    config = load_recipe("paper-vit-b16", overrides)
    assert config.model.temperature == 0.07
    assert config.views.crop_scale == (0.3, 1.0)
    assert config.optim.clip_norm is None
    assert config.encoder.arch == "vit_base_patch16_224"


def test_a_saved_config_reads_back(tmp_path: Path) -> None:
    config = load_recipe("paper-vit-b16", {"data.images": "photos", "name": "x", "model.local_weight": 0.5})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert load_recipe(str(path), {}) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.temprature": 0.1}, "temprature"),
        ({"model.temperature": -1}, "model.temperature"),
        ({"model.pivots": "best"}, "pivots"),
        ({"optim.batch_size": "many"}, "batch_size"),
        ({"compute.workers": 3}, "compute.workers"),
    ],
)
def test_unknown_and_impossible_values_are_refused_by_name(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("paper-vit-b16", {"data.images": "photos"} | overrides)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ValueError, match=r"no-such.*paper-vit-b16"):
        recipe_path("no-such")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: OptimConfig(epochs=0), "optim.epochs"),
        (lambda: OptimConfig(batch_size=1), "optim.batch_size"),
        (lambda: OptimConfig(base_lr=0), "optim.base_lr"),
        (lambda: OptimConfig(epochs=5, warmup_epochs=5), "optim.warmup_epochs"),
        (lambda: OptimConfig(weight_decay=-1), "optim.weight_decay"),
        (lambda: OptimConfig(clip_norm=0), "optim.clip_norm"),
        (lambda: ComputeConfig(workers=0), "compute.workers"),
        (lambda: ComputeConfig(cpus_per_worker=0), "compute.cpus_per_worker"),
        (lambda: CheckpointingConfig(every_steps=0), "checkpoint.every_steps"),
        (lambda: CheckpointingConfig(keep=0), "checkpoint.keep"),
        (lambda: InTrainingConfig(every_epochs=0), "evaluation.every_epochs"),
        (lambda: InTrainingConfig(max_images=1), "evaluation.max_images"),
        (lambda: InTrainingConfig(log_every_steps=0), "evaluation.log_every_steps"),
        (lambda: PretrainConfig(data=DataConfig(images="x"), name="a/b"), "name"),
        (lambda: PretrainConfig(data=DataConfig(images="x"), seed=-1), "seed"),
        (lambda: PretrainConfig(data=DataConfig(images="x"), resume=True), "resume"),
    ],
)
def test_every_field_refuses_the_impossible(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        make()
