"""Ask every node of a cluster what a run needs of it, and print what is found."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from cluster import checks
from cluster.checks import Finding, Node
from cluster.options import DoctorConfig
from cluster.probe import MARK, Answers, Questions, clock, probe
from pipelines.run.folder import RunFolder, named
from pipelines.run.nodes import PATIENCE, ask_every_node
from pipelines.tracking.store import store_uri


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
    storage = named(config).storage
    uri = store_uri(config.tracking, storage)
    sources = (config.data.images, config.data.eval_images) if config.data else ()
    questions = Questions(storage, f".doctor-{uuid.uuid4().hex}", uri, tuple(source for source in sources if source))
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
    folder, unwritable = RunFolder(f"{questions.storage}/{questions.folder}"), ""
    try:
        folder.write(MARK, "")
    except OSError as error:
        unwritable = str(error)
    there = [node for node in ray.nodes() if node["Alive"]]
    answers = ask_every_node(there, probe, questions)
    nodes = [_heard(node, answer) for node, answer in zip(there, answers, strict=True)]
    if not unwritable:
        _read_back(folder, there, nodes)
    return sorted(nodes, key=lambda node: node.address), unwritable


def _heard(node: dict[str, Any], answer: Answers | RayError) -> Node:
    about = Node(node["NodeManagerAddress"], node["Resources"], None)
    if isinstance(answer, GetTimeoutError):
        return replace(about, silence=f"no answer within {PATIENCE:g} s")
    if isinstance(answer, RayError):
        return replace(about, silence=str(answer).strip().splitlines()[-1])
    return replace(about, answers=answer, skew=_skew(node))


def _skew(node: dict[str, Any]) -> float:
    """Return how many seconds a node's clock is ahead of this one's at least, or, negative, behind it."""
    sent = time.time()
    (there,) = ask_every_node([node], clock)
    heard = time.time()
    return 0.0 if isinstance(there, RayError) else max(0.0, there - heard) + min(0.0, there - sent)


def _read_back(folder: RunFolder, there: list[dict[str, Any]], nodes: list[Node]) -> None:
    """Look for what the nodes wrote to the storage, and remove it."""
    for place, (about, node) in enumerate(zip(there, nodes, strict=True)):
        if node.answers and node.answers.storage is None and not folder.has(about["NodeID"]):
            lost = replace(node.answers, storage="what it wrote there is not there for the driver")
            nodes[place] = replace(node, answers=lost)
    folder.remove_all()
