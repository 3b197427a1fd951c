from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from lodisc.config import EncoderConfig, ModelConfig
from lodisc.model import LoDisc
from pipelines.evaluation.evaluate import confusions_of, evaluate, omissions, table
from pipelines.evaluation.evaluators import Seen, score
from pipelines.evaluation.features import Features
from pipelines.evaluation.options import EvaluateConfig
from pipelines.evaluation.scores import SCORES
from pipelines.run.checkpoint import FILE
from pipelines.run.config import DataConfig, PretrainConfig, to_dict

ALL = [
    *("knn/fine", "knn/coarse", "retrieval/rank1", "retrieval/rank5", "retrieval/map", "linear/top1", "linear/top5"),
    *("rankme", "uniformity"),
]


def features(labels: list[str] | None, coarse: list[str] | None = None, count: int = 12) -> Features:
    """Features that are their fine class's corner of a square, nearly."""
    noise = 0.01 * torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
    corners = torch.eye(4)[torch.arange(count) % 4]
    return Features(corners + noise, [f"{i}.jpg" for i in range(count)], labels, coarse)


FINE = ["ale", "bun", "cod", "dip"] * 3
COARSE = ["drink", "food", "food", "food"] * 3


def test_every_score_of_the_table_is_taken_where_there_is_all_that_it_needs() -> None:
    test, gallery = features(FINE, COARSE), features(FINE * 2, COARSE * 2, count=24)
    assert list(score(Seen(test, gallery, other_view=gallery.features[:12]))) == list(SCORES)


def test_scores_of_separated_classes_are_perfect() -> None:
    scores = score(Seen(features(FINE, COARSE), features(FINE * 2, COARSE * 2, count=24)))
    assert list(scores) == ALL
    assert all(value == pytest.approx(100) for name, value in scores.items() if "/" in name and name != "knn/coarse")
    assert scores["rankme"] == pytest.approx(4, abs=0.1)


def test_scores_are_what_the_labels_allow() -> None:
    label_free = ["rankme", "uniformity"]
    retrieval = ["retrieval/rank1", "retrieval/rank5", "retrieval/map"]
    assert list(score(Seen(features(None), features(FINE)))) == label_free
    assert list(score(Seen(features(FINE)))) == retrieval + label_free
    assert list(score(Seen(features(FINE), features(None)))) == retrieval + label_free
    assert list(score(Seen(features(list("abcdefghijkl"))))) == label_free
    assert "linear/top1" not in score(Seen(features(FINE), features(list("abcdefghijkl"))))
    assert list(score(Seen(features(FINE), features(FINE)), ["knn"])) == ["knn/fine"]
    assert list(score(Seen(features(None, count=1)))) == ["rankme"]


def test_a_class_that_only_the_test_set_has_is_wrong() -> None:
    gallery = features([name if name != "dip" else "cod" for name in FINE * 2], count=24)
    assert score(Seen(features(FINE), gallery), ["knn", "linear"]) == {
        "knn/fine": 75,
        "linear/top1": 75,
        "linear/top5": 75,
    }


def test_confusions_are_printed_and_returned_by_probe(capsys: pytest.CaptureFixture[str]) -> None:
    test = features(FINE, COARSE)
    gallery = features([name if name != "dip" else "cod" for name in FINE * 2], count=24)
    seen = Seen(test, gallery)
    linear = seen.ranked("linear")
    assert linear is not None and seen.ranked("knn/fine") is not None and seen.ranked("knn/coarse") is None
    assert [ranked[0] for ranked in linear] == ["ale", "bun", "cod", "cod"] * 3
    assert all(sorted(ranked) == ["ale", "bun", "cod"] for ranked in linear)
    test.labels[0] = "cod"  # type: ignore[index]  # an ale that someone mislabelled
    found = confusions_of(seen)
    # No gallery image is a dip: it is known as a sister of cod's from the test images. So is that ale is none.
    pairs = [
        {"truth": "dip", "predicted": "cod", "count": 3, "of": 3, "sisters": True},
        {"truth": "cod", "predicted": "ale", "count": 1, "of": 4, "sisters": True},
    ]
    assert found["knn"] == found["linear"] == {"within_coarse": 100.0, "most_frequent": pairs}
    printed = capsys.readouterr().out
    assert "k-NN: 4 of 12 images are taken for another class; 100 % of the mistakes stay within" in printed
    assert "linear probe: 4 of 12" in printed and "  dip taken for cod: 3 of 3; both food" in printed


def test_alignment_needs_another_view() -> None:
    test = features(None)
    assert score(Seen(test, other_view=test.features), ["geometry"])["alignment"] == pytest.approx(0)


def test_unknown_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="probes: unknown svm; there are knn, retrieval"):
        score(Seen(features(None)), ["svm"])


def test_omissions_are_explained() -> None:
    assert omissions(features(FINE), features(FINE)) == []
    assert omissions(features(None), None) == ["Left out: retrieval, k-NN, linear probe; not every image has a label."]
    assert "k-NN, linear probe; a gallery of other" in omissions(features(FINE), None)[0]
    assert "k-NN, linear probe; not every gallery image" in omissions(features(FINE), features(None))[0]
    assert omissions(features(FINE), features(list("abcdefghijkl"))) == [
        "Left out: linear probe; no class has two gallery images."
    ]
    assert omissions(features(FINE), None, probes=["retrieval"]) == omissions(features(None), None, ["geometry"]) == []
    alone = ["ale", *["bun"] * 11]
    assert omissions(features(alone), features(FINE)) == [
        "Retrieval: 1 of 12 images are no queries, the only one of their class."
    ]


def test_table_names_units() -> None:
    assert table({"knn/fine": 12.345, "rankme": 7}) == "  knn/fine     12.35 %\n  rankme        7.00"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "/nowhere"}, "/nowhere: neither a checkpoint folder"),
        ({"images": "nowhere"}, "nowhere: there is no such file or folder"),
        ({"gallery": "nowhere@test"}, "nowhere@test: there is no such file or folder"),
        ({"gallery": "images"}, "gallery must hold other images"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"probe": "svm"}, "probe: unknown 'svm'; there are knn, retrieval"),
        ({"probe": "linear"}, "probe: linear learns from a gallery of other labelled images"),
        ({"output": "images"}, "output must be a JSON file"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("step-00000007").mkdir()
    Path("step-00000007", FILE).touch()
    Path("images").mkdir()
    EvaluateConfig(checkpoint="step-00000007", images="images")
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**{"checkpoint": "step-00000007", "images": "images", **changes})


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, str, MlflowClient]:
    """A checkpoint as the train loop writes it, 7 steps into a run in a store of its own."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("test")).info.run_id
    config = PretrainConfig(
        data=DataConfig(images="."),
        encoder=EncoderConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2),
        model=ModelConfig(hidden_dim=16, output_dim=8),
    )
    torch.manual_seed(5)
    model = LoDisc(config.encoder, config.model)
    folder = tmp_path / "step-00000007"
    folder.mkdir()
    about = {"step": 7, "config": to_dict(config), "run_id": run_id, "tracking_uri": uri}
    torch.save({"model": model.state_dict(), **about}, folder / FILE)
    return folder, run_id, client


@pytest.mark.slow
def test_evaluate_from_files_to_scores(
    ray_session: None,
    image_folder: Callable[..., Path],
    checkpoint: tuple[Path, str, MlflowClient],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, run_id, client = checkpoint
    images, gallery = image_folder(classes=4, per_class=10), image_folder(classes=4, per_class=12)
    (images / "class-1" / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (images / "class-0" / "000.jpg").rename(images / "class-1" / "mislabelled.jpg")
    output = tmp_path / "new" / "scores.json"
    config = EvaluateConfig(checkpoint=str(folder), images=str(images), gallery=str(gallery), output=str(output))

    scores = evaluate(config)

    assert list(scores) == [name for name in ALL if name != "knn/coarse"]
    assert scores["knn/fine"] > 25, "colours and shapes tell these classes apart, trained or not"
    result = json.loads(output.read_text())
    assert result["scores"] == scores and result["step"] == 7 and result["config"]["gallery"] == str(gallery)
    points = client.get_metric_history(run_id, "test/knn/fine")
    assert [(point.step, point.value) for point in points] == [(7, scores["knn/fine"])]
    confused = {"truth": "class-1", "predicted": "class-0", "count": 1, "of": 11, "sisters": None}
    for probe in ("knn", "linear"):
        assert confused in result["confusions"][probe]["most_frequent"]
    printed = capsys.readouterr().out
    assert "  class-1 taken for class-0: 1 of 11\n" in printed
    assert f"{images}: 40 images, 1 set aside" in printed and "torn.jpg" in printed and "knn/fine" in printed


@pytest.mark.slow
def test_a_dead_store_costs_a_warning(
    ray_session: None,
    image_folder: Callable[..., Path],
    checkpoint: tuple[Path, str, MlflowClient],
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = image_folder(classes=2, per_class=4)
    dead = "http://127.0.0.1:9"
    config = EvaluateConfig(checkpoint=str(checkpoint[0]), images=str(images), probe="retrieval", tracking_uri=dead)
    scores = evaluate(config)
    assert set(scores) == {"retrieval/rank1", "retrieval/rank5", "retrieval/map"}
    assert f"warning: the scores are not in MLflow ({dead}" in capsys.readouterr().out
