"""Several nodes for real: a head that drives, two that train, one that draws views; and what becomes of a run on them.

Every run here has the same config, so all their curves must be the same, whatever befell them.
"""

from __future__ import annotations

import os
import pty
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.cluster.lab import SECONDS, Lab, ended, workers_of
from tests.cluster.nodes import Nodes, may_make_namespaces, stopped, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.privileged]
addresses = pytest.mark.skipif(
    not may_make_namespaces(), reason="nodes with addresses of their own take root and network namespaces"
)
STEPS = 60
EPOCHS = STEPS // 3
SECONDS_UNTIL_HEARD = 7  # Ray Train asks every 5 s which nodes will be taken


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, image_folder: Any) -> Iterator[Lab]:
    with Nodes(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start("head", cpus=0)
        cluster.start("first", cpus=1)
        cluster.start("second", cpus=1)
        cluster.start("ingest", cpus=1, labels=["ingest=true"])
        yield Lab(cluster, image_folder(classes=2, per_class=13))


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> list[tuple[int, float]]:
    """The losses of a run to which nothing happens, as a job."""
    nodes = lab.cluster.nodes
    job = lab.outside("submit", "pretrain", *lab.recipe("undisturbed", EPOCHS), "--address", lab.cluster.dashboard)
    wait_for(lambda: workers_of(nodes["first"]) + workers_of(nodes["second"]) == 2, SECONDS)
    assert [workers_of(node) for node in nodes.values()] == [0, 1, 1, 0], "a worker on each node that trains"
    drawing = "MapBatches"
    wait_for(lambda: bool(nodes["ingest"].find(drawing)), SECONDS)
    assert not nodes["first"].find(drawing) and not nodes["second"].find(drawing)
    printed = ended(job)
    assert f"step {STEPS}/{STEPS}" in printed, "the job's lines are told here"
    run, losses = lab.tracked("undisturbed")
    assert run.info.status == "FINISHED" and run.data.tags["restarts"] == "0"
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    return losses


def test_a_worker_trains_on_each_of_two_nodes_and_a_third_draws_their_views(
    undisturbed: list[tuple[int, float]],
) -> None:
    assert all(0 < loss < 10 for _, loss in undisturbed)


@addresses
def test_a_run_lives_through_the_loss_of_a_worker_and_a_node_and_leaves_one_that_will_be_taken(
    lab: Lab, undisturbed: list[tuple[int, float]]
) -> None:
    nodes, (first, second) = lab.cluster.nodes, lab.trainers()
    run = lab.cluster.run("pretrain", *lab.recipe("disturbed", EPOCHS), "--address", lab.cluster.address)
    lab.reach("disturbed", 4, run)
    (worker,) = nodes[first].find("RayTrainWorker")
    worker.kill()

    lab.reach("disturbed", 12, run)
    nodes.pop(first).kill()
    lab.cluster.start("third", cpus=1)

    lab.reach("disturbed", 20, run)
    leaving = lab.cluster.run("leave", "--within", "100", "--address", lab.cluster.address, node=nodes[second])
    with stopped(nodes["third"].find("RayTrainWorker")):  # A slow worker, for whom the run waits.
        assert leaving.stdout is not None and "leaves within 100 s" in leaving.stdout.readline()
        time.sleep(SECONDS_UNTIL_HEARD)
        before = lab.steps("disturbed")
    assert "no worker trains here" in ended(leaving)
    saved = lab.steps("disturbed")
    assert before <= saved <= before + 2, "they left at their next step"
    lab.cluster.start("fourth", cpus=1)

    printed = ended(run)
    failures = printed.count("the workers failed: ")
    assert failures >= 2, printed
    tracked, losses = lab.tracked("disturbed")
    assert losses == undisturbed
    assert tracked.info.status == "FINISHED" and tracked.data.tags["restarts"] == str(failures)
    nodes.pop(second).kill()


def test_a_driver_that_is_killed_is_resumed_from_elsewhere(lab: Lab, undisturbed: list[tuple[int, float]]) -> None:
    recipe = lab.recipe("driven", EPOCHS)
    run = lab.cluster.run("pretrain", *recipe, "--address", lab.cluster.address)
    lab.reach("driven", 6, run)
    os.killpg(run.pid, signal.SIGKILL)
    assert lab.tracked("driven")[0].info.status == "RUNNING"

    client = lab.cluster.client
    refused = lab.outside("pretrain", *recipe, "--address", client)
    assert "a run 'driven' exists" in refused.communicate(timeout=SECONDS)[0] and refused.returncode == 2
    ended(lab.outside("pretrain", *recipe, "--resume", "--address", client))
    assert lab.tracked("driven")[1] == undisturbed


def test_a_job_that_is_stopped_saves_a_checkpoint(lab: Lab, undisturbed: list[tuple[int, float]]) -> None:
    """Ctrl-C asks, as there is a terminal, and the answer is yes."""
    terminal, own = pty.openpty()
    arguments = ["submit", "pretrain", *lab.recipe("stopped", epochs=1000), "--address", lab.cluster.dashboard]
    job = lab.outside(*arguments, stdin=own)
    lab.reach("stopped", 4, job)
    job.send_signal(signal.SIGINT)
    time.sleep(1)
    os.write(terminal, b"y\n")
    output, _ = job.communicate(timeout=SECONDS)
    assert job.returncode == 130, output
    assert "the run was told to end and did, at step" in output
    run, losses = lab.tracked("stopped")
    assert run.info.status == "KILLED"
    assert losses[-1][0] == lab.steps("stopped"), "no step is lost"
    assert len(losses) == losses[-1][0] < 3000


def test_elastic_workers_go_on_with_fewer_and_grow_again(lab: Lab) -> None:
    nodes, (first, second) = lab.cluster.nodes, lab.trainers()
    run = lab.cluster.run(
        "pretrain", *lab.recipe("elastic", epochs=1000, min_workers=1), "--address", lab.cluster.address
    )
    lab.reach("elastic", 4, run)
    nodes.pop(first).kill()
    at = lab.steps("elastic")
    lab.reach("elastic", at + 5, run)
    assert workers_of(nodes[second]) == 1, "as it was, although a second one of half the size would fit beside it"
    lab.cluster.start("fifth", cpus=1)
    wait_for(lambda: workers_of(nodes[second]) == workers_of(nodes["fifth"]) == 1, SECONDS)
    grown = lab.steps("elastic")
    lab.reach("elastic", grown + 5, run)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=SECONDS)
    assert run.returncode == 143 and "--resume continues it" in output
    tracked, losses = lab.tracked("elastic")
    assert [step for step, _ in losses] == list(range(1, lab.steps("elastic") + 1))
    rates = MlflowClient(f"sqlite:///{lab.storage}/mlflow.db").get_metric_history(
        tracked.info.run_id, "schedule/learning_rate"
    )
    assert max(point.value for point in rates) == pytest.approx(0.01 * 8 / 256), "of the batch, which stays the same"


def test_doctor_finds_a_healthy_cluster_healthy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment names another one."""
    monkeypatch.setitem(lab.cluster.environment, "RAY_ADDRESS", "192.0.2.1:6379")
    recipe = lab.recipe("any", EPOCHS)
    printed = ended(lab.cluster.run("doctor", *recipe, "--address", lab.cluster.address))
    assert "the cluster has what the run needs" in printed
    assert "problem" not in printed
    assert "there is room for 2 workers of 1 CPU; 1 CPUs of ingest nodes draw views" in printed
    assert not list(lab.storage.glob(".doctor*"))


@addresses
def test_doctor_names_what_is_broken(lab: Lab, tmp_path: Path) -> None:
    """A node with another timm and another disk in the storage's place; a store at 127.0.0.1; three GPUs too few."""
    other = tmp_path / "timm-0.0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.0.1\n")
    path = f"{tmp_path}{os.pathsep}{lab.cluster.environment['PYTHONPATH']}"
    broken = lab.cluster.start("broken", cpus=1, own=[lab.storage], PYTHONPATH=path)
    options = ["--tracking.uri", "http://127.0.0.1:5000", "--compute.gpus", "yes", "--compute.workers", "1"]
    doctor = lab.cluster.run("doctor", *lab.recipe("any", EPOCHS), *options, "--address", lab.cluster.address)
    printed, _ = doctor.communicate(timeout=SECONDS)
    lab.cluster.nodes.pop("broken").kill()
    lines = {line.split()[1]: line for line in printed.splitlines() if line.startswith("problem")}
    assert doctor.returncode == 2
    assert f"{broken.address} has timm 0.0.1, the driver" in lines["versions"]
    assert f"http://127.0.0.1:5000 is not reached from {lab.cluster.head.address}, " in lines["tracking"]
    assert "1 workers need a GPU each, the cluster has 0" in lines["workers"]
    if broken.prefix:
        assert f"{broken.address}: ValueError: what another machine wrote there is not there" in lines["storage"]
    assert all(f"-> {word}" in printed for word in ("install the same", "give --tracking.uri", "fewer workers"))
