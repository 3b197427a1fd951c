"""Ask every node of a cluster what a run needs of it, and print what is found."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import checks
from cluster.checks import Finding, Node
from cluster.probe import STORAGE_FOLDER, Answers, Questions, clock, probe
from pipelines.config import DataConfig, PretrainConfig
from pipelines.run_folder import RunFolder
from pipelines.tracking import store_uri

PATIENCE = 60.0  # seconds that nodes have to answer


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(PretrainConfig):
    """The run that a cluster is checked for, described as for `pretrain`. Without `data.images` none are looked for."""

    data: DataConfig | None = None  # type: ignore[assignment]


def doctor(config: DoctorConfig) -> None:
    """Print what every check found. Ray must be running.

    Raises:
        ValueError: there are problems.
    """
    findings = list(examine(config))
    for finding in findings:
        print(finding, flush=True)
    problems = sum(finding.verdict == "problem" for finding in findings)
    if problems:
        raise ValueError(f"doctor: {problems} of {len(findings)} checks found a problem")
    print("the cluster has what the run needs")


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """Yield what each check of a cluster finds."""
    storage = config.storage if "://" in config.storage else str(Path(config.storage).absolute())
    uri = store_uri(config.tracking, storage)
    sources = (config.data.images, config.data.eval_images) if config.data else ()
    questions = Questions(storage, uuid.uuid4().hex, uri, tuple(source for source in sources if source))
    nodes, unwritable = ask_nodes(questions)
    yield checks.check_nodes(nodes)
    yield checks.check_versions(nodes)
    yield checks.check_clocks(nodes)
    yield checks.check_dashboard()
    yield checks.check_token(nodes)
    yield checks.check_storage(nodes, storage, unwritable)
    yield checks.check_tracking(nodes, uri)
    yield checks.check_workers(config)
    yield checks.check_gpus(nodes)
    yield checks.check_memory(nodes, config)
    yield checks.check_shared_memory(nodes)
    if config.data:
        yield from (checks.check_source(nodes, source) for source in questions.images)
        yield checks.check_object_store(nodes, questions.images)


def ask_nodes(questions: Questions) -> tuple[list[Node], str]:
    """Ask every node that is there; return what they say, and why the storage cannot be written from here, if so."""
    folder, unwritable = RunFolder(f"{questions.storage}/{STORAGE_FOLDER}"), ""
    try:
        folder.write(questions.written, "")
    except OSError as error:
        unwritable = str(error)
    there = [node for node in ray.nodes() if node["Alive"]]
    asked = [_on(node["NodeID"], probe).remote(node["NodeID"], questions) for node in there]
    ray.wait(asked, num_returns=len(asked), timeout=PATIENCE)
    nodes = [_heard(node, reference) for node, reference in zip(there, asked, strict=True)]
    if not unwritable:
        _read_back(folder, there, nodes)
    return sorted(nodes, key=lambda node: node.address), unwritable


def _on(node: str, function: Callable[..., Any]) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=strategy)


def _heard(node: dict[str, Any], reference: ray.ObjectRef) -> Node:
    silent = partial(Node, node["NodeManagerAddress"], node["Resources"], None)
    try:
        answers: Answers = ray.get(reference, timeout=0)
        return Node(node["NodeManagerAddress"], node["Resources"], answers, skew=_skew(node["NodeID"]))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        return silent(f"no answer within {PATIENCE:g} s")
    except ray.exceptions.RayError as error:
        return silent(str(error).strip().splitlines()[-1])


def _skew(node: str) -> float:
    """Return how many seconds a node's clock is ahead of this one's at least, or, negative, behind it."""
    sent = time.time()
    there: float = ray.get(_on(node, clock).remote(), timeout=PATIENCE)
    return max(0.0, there - time.time()) + min(0.0, there - sent)


def _read_back(folder: RunFolder, there: list[dict[str, Any]], nodes: list[Node]) -> None:
    """Look for what the nodes wrote to the storage, and remove it."""
    for place, (about, node) in enumerate(zip(there, nodes, strict=True)):
        if node.answers and node.answers.storage is None and not folder.has(about["NodeID"]):
            lost = replace(node.answers, storage="what it wrote there is not there for the driver")
            nodes[place] = replace(node, answers=lost)
    folder.remove_all()
