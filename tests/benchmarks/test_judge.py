"""Contenders are really trained, once, and scored as `lodisc evaluate` scores them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.results.__main__ import Judge
from benchmarks.results.contenders import Contender, DataSet
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.options import EvaluateConfig

SMALL = {
    "encoder.depth": 1,
    "model.hidden_dim": 16,
    "model.output_dim": 8,
    "optim.epochs": 1,
    "optim.batch_size": 8,
    "optim.warmup_epochs": 0,
}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_contender_is_trained_once_and_scored_as_evaluate_does(
    image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes some 20 s: workers start to train, others to embed."""
    train, test = str(image_folder(per_class=16)), str(image_folder(per_class=4))
    data, storage = DataSet("birds", "demo", train, test, test, longer=1), str(tmp_path)
    judge, contender = Judge(data, storage), Contender("ours", SMALL)
    row = judge.row(contender, 0)
    assert (row["set"], row["contender"], row["seed"], row["epochs"], row["steps"]) == ("birds", "ours", 0, 1, 4)
    assert row["curves"]["eval/knn/fine"]["epochs"][-1] == 1.0
    same = EvaluateConfig(checkpoint=f"{storage}/birds-ours-s0", images=test, gallery=train)
    assert row["scores"] == pytest.approx(evaluate(same))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the run is there already")

    monkeypatch.setattr("benchmarks.results.__main__.pretrain", refuse)
    assert judge.row(contender, 0) == row
    with pytest.raises(ValueError, match=r"birds-ours-s0: a run with another config \(model\)"):
        judge.row(Contender("ours", {**SMALL, "model.temperature": 0.5}), 0)
