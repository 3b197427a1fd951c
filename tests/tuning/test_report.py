"""The report of a sweep, read from a real MLflow store that holds what sweeps leave there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from pipelines.run.config import DataConfig, TrackingConfig, load_recipe, to_dict
from pipelines.tracking.runs import create_run, finish_run, log_files
from tests.pipelines.mlflow_pages import Pages, missing_browser
from tests.pipelines.mlflow_server import Server
from tuning.config import SweepConfig
from tuning.report import BASE, SWEEP_TAG, ReportConfig, SweepReport, importance, read_sweep, report, report_files
from tuning.trial import COMPLETED, DIVERGED, STOPPED

STEPS_PER_EPOCH = 10
SPACE: dict[str, dict[str, list[Any]]] = {
    "model.temperature": {"log": [0.05, 0.5]},
    "model.mask_ratio": {"uniform": [0.4, 0.9]},
    "model.pivots": {"choice": ["fused", "random"]},
}
# Values, outcome and score by epoch. By design the score is 100 times the temperature, at any epoch.
TRIALS: list[tuple[tuple[float, float, str], str, dict[int, float]]] = [
    ((0.10, 0.5, "fused"), COMPLETED, {1: 10.0, 2: 10.0, 3: 10.0}),
    ((0.30, 0.8, "random"), COMPLETED, {1: 30.0, 2: 30.0, 3: 30.0}),
    ((0.05, 0.7, "random"), STOPPED, {1: 5.0}),
    ((0.40, 0.6, "fused"), STOPPED, {1: 40.0, 2: 40.0}),
    ((0.20, 0.4, "fused"), STOPPED, {1: 20.0}),
    ((0.50, 0.9, "fused"), DIVERGED, {}),
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the sweep `mine`, and a run beside it that is no sweep."""
    storage = str(tmp_path_factory.mktemp("runs"))
    sweep = SweepConfig(
        recipe="grocery",
        data=DataConfig(images="photos", eval_images="held-out"),
        overrides={"optim.epochs": 3},
        space=SPACE,
        name="mine",
        storage=storage,
    )
    parent = create_run(TrackingConfig(), storage, "mine", to_dict(sweep), {SWEEP_TAG: "knn/fine"})
    log_files(parent, {BASE: yaml.safe_dump(to_dict(sweep.base())).encode()})
    client = MlflowClient(parent.uri)
    # A sweep that was killed twice while it began its first trials.
    parent_tag = {"mlflow.parentRunId": parent.run_id}
    client.create_run("1", run_name="mine-000-abcd", tags=parent_tag)
    create_run(TrackingConfig(), storage, "mine-001-abcd", {field: 0.1 for field in SPACE}, {}, parent.run_id)
    for number, (values, outcome, scores) in enumerate(TRIALS):
        params = to_dict(load_recipe("grocery", {"data.images": "photos", **dict(zip(SPACE, values, strict=True))}))
        trial = create_run(TrackingConfig(), storage, f"mine-{number:03d}-abcd", params, {}, parent.run_id)
        for epoch, score in scores.items():
            client.log_metric(trial.run_id, "eval/knn/fine", score, step=epoch * STEPS_PER_EPOCH)
            client.log_metric(trial.run_id, "eval/retrieval/rank1", 100 - score, step=epoch * STEPS_PER_EPOCH)
            client.log_metric(trial.run_id, "epoch", epoch, step=epoch * STEPS_PER_EPOCH)
        tags = {"trial.outcome": outcome} | ({"trial.reason": "step 3: loss nan"} if outcome == DIVERGED else {})
        finish_run(trial, "FINISHED", tags)
    log_files(
        parent,
        {f"report/{name}": content for name, content in report_files(read_sweep(parent.uri, parent.run_id)).items()},
    )
    finish_run(parent, "FINISHED")
    finish_run(create_run(TrackingConfig(), storage, "no-sweep", {}), "FINISHED")
    return storage


@pytest.fixture(scope="module")
def found(storage: str) -> SweepReport:
    return report(ReportConfig(sweep="mine", storage=storage))


def test_the_report_knows_every_trial(found: SweepReport) -> None:
    assert [trial.name for trial in found.trials] == [f"mine-{number:03d}-abcd" for number in range(len(TRIALS))]
    for trial, (values, outcome, scores) in zip(found.trials, TRIALS, strict=True):
        assert (tuple(trial.params.values()), trial.outcome, trial.scores) == (values, outcome, scores)
    assert (found.name, found.objective.name, found.epochs) == ("mine", "knn/fine", 3)


def test_the_best_went_to_the_end_and_trials_are_compared_where_all_were_scored(found: SweepReport) -> None:
    assert found.best is not None and found.best.name == "mine-001-abcd"
    assert found.common_epoch == 1
    assert [value for _, value in found.comparable()] == [10.0, 30.0, 5.0, 40.0, 20.0]


def test_a_field_that_decides_the_score_is_the_important_one(found: SweepReport) -> None:
    shares = importance(found)
    assert next(iter(shares)) == "model.temperature" and shares["model.temperature"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)


def test_the_report_is_printed_and_written(storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(ReportConfig(sweep="mine", storage=storage, output=str(tmp_path / "out")))
    text = capsys.readouterr().out
    assert text.index("001-abcd") < text.index("000-abcd") < text.index("003-abcd") < text.index("004-abcd")
    assert "diverged: step 3: loss nan" in text
    assert "10 of 18 epochs were run (56 %)" in text  # 3 + 3 + 1 + 2 + 1 + 0
    assert "best: mine-001-abcd, knn/fine 30: model.temperature 0.3, model.mask_ratio 0.8, model.pivots random" in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"parallel_coordinates.png", "response.png", "importance.png"}
    assert written == {"report.txt", "trials.json", "importance.json", "best.yaml", *pictures}
    for name in pictures:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 500 and picture.height > 150
    trials = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert len(trials["data"]) == len(TRIALS) and trials["columns"][1:4] == list(SPACE)


def test_trials_can_be_compared_by_another_score_afterwards(storage: str, found: SweepReport) -> None:
    """By design the Rank-1 of a trial is 100 less its k-NN."""
    other = report(ReportConfig(sweep="mine", storage=storage, objective="retrieval/rank1"))
    assert other.objective.name == "retrieval/rank1"
    assert other.best is not None and other.best.name == "mine-000-abcd"
    assert [score for _, score in other.comparable()] == [100 - score for _, score in found.comparable()]
    with pytest.raises(ValueError, match="objective: loss cannot be tuned on"):
        report(ReportConfig(sweep="mine", storage=storage, objective="loss"))


def test_the_best_config_is_one_to_pretrain_with(storage: str, tmp_path: Path) -> None:
    report(ReportConfig(sweep="mine", storage=storage, output=str(tmp_path)))
    best = load_recipe(str(tmp_path / "best.yaml"), {})
    assert (best.model.temperature, best.model.mask_ratio, best.model.pivots) == (0.3, 0.8, "random")
    assert (best.optim.epochs, best.data.images, best.name) == (3, "photos", None)


@pytest.mark.slow
@pytest.mark.skipif(missing_browser() is not None, reason=missing_browser() or "")
def test_a_browser_shows_the_trials_below_their_sweep_and_compares_them(found: SweepReport, storage: str) -> None:
    trials = [trial for trial in found.trials if trial.scores]
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    (parent,) = [run for run in client.search_runs(["1"]) if run.info.run_name == "mine"]
    with Server(Path(storage)) as server, Pages(server.uri, "1") as pages:
        assert pages.listed_runs() == {"mine", "no-sweep"}
        assert pages.expand(parent.info.run_id) == {"mine", "no-sweep", *(trial.name for trial in found.trials)}
        assert pages.compare("eval/knn/fine", run_ids=[trial.run_id for trial in trials[:2]]) == {
            trial.name for trial in trials[:2]
        }
        # MLflow takes up to three of the params in which the runs differ, and the metric that was logged first.
        axes = pages.parallel_coordinates([trial.run_id for trial in trials])
        assert axes == {"eval/knn/fine", "model.mask_ratio", "model.pivots", "model.temperature"}
        width, height = pages.picture_size(parent.info.run_id, "report/parallel_coordinates.png")
        assert width > 500 and height > 150


def test_what_is_no_sweep_is_refused_with_those_that_are(storage: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such run in .*: no-sweep; there are mine"):
        report(ReportConfig(sweep="no-sweep", storage=storage))
    with pytest.raises(ValueError, match="no experiment 'other'"):
        report(ReportConfig(sweep="mine", storage=storage, tracking=TrackingConfig(experiment="other")))
    with pytest.raises(ValueError, match="storage: there is no MLflow store"):
        report(ReportConfig(sweep="mine", storage=str(tmp_path)))
    with pytest.raises(ValueError, match=r"tracking\.uri: .* does not answer"):
        report(ReportConfig(sweep="mine", tracking=TrackingConfig(uri="http://127.0.0.1:9")))
