"""The demonstration, shortened, through the command that `make demo` runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cluster.cli import main
from pipelines.demo.demo import COLUMNS, demo_recipe, table
from pipelines.demo.options import DemoConfig


@pytest.mark.parametrize(
    ("field", "value"), [("train_per_class", 1), ("test_per_class", 1), ("epochs", 0), ("seed", -1)]
)
def test_impossible_sizes_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        DemoConfig(**{field: value})


def test_the_recipe_keeps_its_shape_when_shortened() -> None:
    whole = demo_recipe(DemoConfig(data="birds", seed=7))
    short = demo_recipe(DemoConfig(data="birds", seed=7, epochs=2))
    assert (whole.data.images, whole.data.eval_images, whole.seed) == ("birds/train", "birds/test", 7)
    assert short.optim.epochs == 2
    share = whole.optim.warmup_epochs / whole.optim.epochs
    assert short.optim.warmup_epochs / short.optim.epochs == pytest.approx(share)
    assert (short.model, short.encoder, short.views) == (whole.model, whole.encoder, whole.views)


def test_the_table_shows_every_encoder_under_the_same_titles() -> None:
    scores = {name: dict.fromkeys(COLUMNS, value) for name, value in (("untrained", 6.25), ("LoDisc", 100.0))}
    titles, first, second = table(scores).splitlines()
    assert len(titles) == len(first) == len(second)
    assert first.split() == ["untrained", *["6.2"] * len(COLUMNS)]
    assert second.split() == ["LoDisc", *["100.0"] * len(COLUMNS)]


@pytest.mark.slow
def test_the_whole_line(ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two runs and three evaluations, one after the other: most of a minute."""
    options = {"data": tmp_path / "birds", "storage": tmp_path / "runs", "train_per_class": 5, "test_per_class": 2}
    assert main(["demo", "--epochs", "1", *(f"--{name}={value}" for name, value in options.items())]) == 0

    run = next((tmp_path / "runs").glob("demo-lodisc-*"))
    scores = json.loads((run / "comparison.json").read_text())
    assert list(scores) == ["untrained", "MoCo v3", "LoDisc"]
    assert all(0 <= values[name] <= 100 for values in scores.values() for name in COLUMNS)
    assert scores["untrained"] != scores["LoDisc"] != scores["MoCo v3"]

    printed = capfd.readouterr().out
    assert table(scores) in printed
    assert f"lodisc ui --storage {tmp_path / 'runs'}" in printed
    assert str(next(run.glob("step-*"))) in printed

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lodisc")
    assert experiment is not None
    runs = {found.data.params["model.local_weight"]: found for found in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"0.0", "1.0"}
    assert "loss/local" in runs["1.0"].data.metrics and "loss/local" not in runs["0.0"].data.metrics
    assert runs["1.0"].data.metrics["test/linear/top1"] == pytest.approx(scores["LoDisc"]["linear/top1"])
    assert runs["1.0"].data.metrics["test-untrained/knn/fine"] == pytest.approx(scores["untrained"]["knn/fine"])
    artifacts = {item.path for item in client.list_artifacts(runs["1.0"].info.run_id)}
    assert {"comparison.json", "pivots", "neighbours.png"} <= artifacts
