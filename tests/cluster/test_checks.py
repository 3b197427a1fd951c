"""What is made of the nodes' answers. Answers of real nodes are in tests/cluster/test_several_nodes.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster import checks
from cluster.checks import Finding, Node
from cluster.probe import MARK, Answers, Questions, probe, versions
from lodisc.config import EncoderConfig
from pipelines.run.config import DataConfig, PretrainConfig

HEALTHY = Answers(
    versions=versions(),
    storage=None,
    tracking=None,
    images={"photos": None},
    gpus=[],
    memory=8_000_000_000,
    shared_memory=3_000_000_000,
    token=True,
)
NODE = Node("10.0.0.1", {"CPU": 8.0, "object_store_memory": 2e9}, HEALTHY)
GPU_NODE = replace(NODE, resources={**NODE.resources, "GPU": 2.0}, answers=replace(HEALTHY, gpus=[80_000_000_000] * 2))
CONFIG = PretrainConfig(data=DataConfig(images="photos"))


def of(finding: Finding) -> tuple[str, str]:
    return finding.verdict, finding.text


def test_a_healthy_node_gives_no_advice() -> None:
    found = [
        checks.check_nodes([NODE]),
        checks.check_versions([NODE]),
        checks.check_clocks([NODE]),
        checks.check_token([NODE]),
        checks.check_storage([NODE], "/shared", ""),
        checks.check_tracking([NODE], "http://mlflow:5000"),
        checks.check_gpus([NODE]),
        checks.check_memory([NODE], CONFIG),
        checks.check_shared_memory([NODE]),
        checks.check_source([NODE], "photos"),
    ]
    assert [finding.verdict for finding in found] == ["ok"] * len(found)
    assert not any(finding.advice or "->" in str(finding) for finding in found)


def test_a_silent_node_is_named() -> None:
    silent = Node("10.0.0.2", {}, None, "ModuleNotFoundError: No module named 'cluster'")
    verdict, text = of(checks.check_nodes([NODE, silent]))
    assert verdict == "problem" and text == "10.0.0.2: ModuleNotFoundError: No module named 'cluster'"


@pytest.mark.parametrize(("skew", "verdict"), [(1.5, "ok"), (-2.5, "problem"), (40.0, "problem")])
def test_clocks_may_differ_by_two_seconds(skew: float, verdict: str) -> None:
    assert checks.check_clocks([NODE, replace(NODE, skew=skew)]).verdict == verdict


def test_a_cluster_without_a_token_is_open() -> None:
    assert checks.check_token([replace(NODE, answers=replace(HEALTHY, token=False))]).verdict == "warning"


def test_a_database_file_is_for_one_machine() -> None:
    assert checks.check_tracking([NODE], "sqlite:////shared/mlflow.db").verdict == "ok"
    assert checks.check_tracking([NODE, NODE], "sqlite:////shared/mlflow.db").verdict == "warning"


def test_passwords_are_not_shown() -> None:
    failing = replace(NODE, answers=replace(HEALTHY, tracking="no answer from http://me:secret@mlflow:5000"))
    finding = checks.check_tracking([failing], "http://me:secret@mlflow:5000")
    assert finding.verdict == "problem" and "secret" not in str(finding)


def test_gpus_that_torch_or_ray_does_not_see_are_named() -> None:
    assert of(checks.check_gpus([GPU_NODE])) == ("ok", "2 in the cluster")
    blind = replace(GPU_NODE, answers=HEALTHY)
    assert of(checks.check_gpus([blind])) == ("problem", "10.0.0.1 offers 2, torch sees 0")
    hidden = replace(GPU_NODE, resources=NODE.resources)
    assert checks.check_gpus([hidden]).verdict == "warning"


def test_a_model_that_no_worker_can_hold_is_named() -> None:
    """ViT-B/16 with the paper's heads: 4 bytes x (all weights, and gradients and two moments of what is trained)."""
    verdict, text = of(checks.check_memory([NODE], replace(CONFIG, encoder=EncoderConfig(arch="vit_base_patch16_224"))))
    assert verdict == "ok" and "2.3 GB" in text and "the smallest node has 8 GB" in text
    small = replace(GPU_NODE, answers=replace(HEALTHY, gpus=[1_000_000_000]))
    verdict, text = of(checks.check_memory([NODE, small], CONFIG))
    assert verdict == "problem" and "the smallest GPU has 1 GB" in text


def test_a_small_shared_memory_is_named() -> None:
    verdict, text = of(checks.check_shared_memory([replace(NODE, answers=replace(HEALTHY, shared_memory=64_000_000))]))
    assert verdict == "warning" and text == "10.0.0.1 has 0.064 GB for 2 GB"


def test_images_larger_than_the_object_stores_are_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(bytes(1_500_000))
    (tmp_path / "list.txt").write_text("a.jpg, 0\n")
    assert of(checks.check_object_store([NODE], [str(tmp_path)])) == (
        "ok",
        "the images are 0.003 GB, the object stores 2 GB",
    )
    little = replace(NODE, resources={"object_store_memory": 2e6})
    assert checks.check_object_store([little], [str(tmp_path)]).verdict == "warning"
    assert checks.check_object_store([little], [str(tmp_path / "list.txt")]).verdict == "ok"
    assert "no such file" in checks.check_object_store([little], [str(tmp_path / "nowhere")]).text


def test_a_node_tells_what_fails_there(tmp_path: Path) -> None:
    questions = Questions(str(tmp_path), "asked", "http://127.0.0.1:9", (str(tmp_path / "nowhere"),))
    answers = probe("node", questions)
    assert answers.storage == "ValueError: what another machine wrote there is not there"
    assert answers.tracking is not None and "127.0.0.1" in answers.tracking
    assert "no such file or folder" in str(answers.images[str(tmp_path / "nowhere")])
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / MARK).touch()
    answers = probe("node", replace(questions, uri=f"sqlite:///{tmp_path}/mlflow.db", images=()))
    assert answers.storage is None and (tmp_path / "asked" / "node").read_text() == "node"
    assert answers.tracking is None and not (tmp_path / "mlflow.db").exists(), "a database is not made by asking"
