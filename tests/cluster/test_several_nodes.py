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
STEPS = 24
EPOCHS = STEPS // 3
# How long a driver waits for room, and between its looks for more of it, in seconds, else 10 and 30.
IMPATIENT = "import pipelines.training.placement as it; it.SECONDS_FOR_ROOM = it.SECONDS_BETWEEN_LOOKS = 2.0"
# How often Ray Train asks which nodes will be taken, else every 5 s.
ASKING = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
SECONDS_UNTIL_HEARD = 2.5


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, image_folder: Any) -> Iterator[Lab]:
    with Nodes(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.environment |= ASKING
        cluster.start("head", cpus=0)
        cluster.start("first", cpus=1)
        cluster.start("second", cpus=1)
        cluster.start("ingest", cpus=1, labels=["ingest=true"])
        yield Lab(cluster, image_folder(classes=2, per_class=13))


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> list[tuple[int, float]]:
    """The losses of a run to which nothing happens, as a job."""
    nodes, drew = lab.cluster.nodes, set[str]()

    def draws() -> bool:
        drew.update(name for name, node in nodes.items() if node.find("MapBatches"))
        return "ingest" in drew

    job = lab.outside("submit", "pretrain", *lab.recipe("undisturbed", EPOCHS), "--address", lab.cluster.dashboard)
    wait_for(lambda: sum(map(workers_of, nodes.values())) == 2, SECONDS, lambda: f"the job ended: {job.poll()}")
    assert [workers_of(node) for node in nodes.values()] == [0, 1, 1, 0], "a worker on each node that trains"
    wait_for(draws, SECONDS, lambda: f"the job ended: {job.poll()}")
    assert drew == {"ingest"}
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
    """It takes some 50 s: workers start four times, and two nodes."""
    nodes, (first, second) = lab.cluster.nodes, lab.trainers()
    recipe = lab.recipe("disturbed", EPOCHS)
    run = lab.cluster.run("pretrain", *recipe, "--address", lab.cluster.address, first=IMPATIENT)
    lab.reach("disturbed", 3, run)
    (worker,) = nodes[first].find("RayTrainWorker")
    worker.kill()

    lab.reach("disturbed", 7, run)
    nodes.pop(first).kill()
    lab.cluster.start("third", cpus=1)

    lab.reach("disturbed", 11, run)
    with stopped(nodes["third"].find("RayTrainWorker")):  # A slow worker, for whom the run waits.
        leaving = lab.cluster.run("leave", "--within", "100", "--address", lab.cluster.address, node=nodes[second])
        assert leaving.stdout is not None and "leaves within 100 s" in leaving.stdout.readline()
        time.sleep(SECONDS_UNTIL_HEARD)
        before = lab.steps("disturbed")
    assert "no worker trains here" in ended(leaving)
    saved = lab.steps("disturbed")
    assert before <= saved <= before + 2 < STEPS, "they left at their next step"
    lab.cluster.start("fourth", cpus=1)

    printed = ended(run)
    failures = printed.count("the workers failed: ")
    assert failures >= 2, printed
    tracked, losses = lab.tracked("disturbed")
    assert losses == undisturbed
    assert tracked.info.status == "FINISHED" and tracked.data.tags["restarts"] == str(failures)
    nodes.pop(second).kill()


def test_a_job_that_is_stopped_and_a_driver_that_is_killed_are_resumed_from_elsewhere(
    lab: Lab, undisturbed: list[tuple[int, float]]
) -> None:
    """Ctrl-C asks whether to stop the job, as there is a terminal, and the answer is yes.

    It takes some 40 s: workers start three times, each time from another kind of driver.
    """
    recipe, terminal = lab.recipe("driven", EPOCHS), pty.openpty()
    job = lab.outside("submit", "pretrain", *recipe, "--address", lab.cluster.dashboard, stdin=terminal[1])
    lab.reach("driven", 3, job)
    (worker,) = lab.cluster.nodes[lab.trainers()[0]].find("RayTrainWorker")
    with stopped([worker]):  # Or the run might be over before it hears of its end.
        job.send_signal(signal.SIGINT)
        time.sleep(1)
        os.write(terminal[0], b"y\n")
        wait_for((lab.storage / "driven" / "leave").exists, SECONDS)
        time.sleep(1.5)
    output, _ = job.communicate(timeout=SECONDS)
    assert job.returncode == 130, output
    assert "the run was told to end and did, at step" in output
    run, losses = lab.tracked("driven")
    assert run.info.status == "KILLED"
    saved = lab.steps("driven")
    assert len(losses) == losses[-1][0] == saved < STEPS, "no step is lost"

    driver = lab.cluster.run("pretrain", *recipe, "--resume", "--address", lab.cluster.address)
    lab.reach("driven", saved + 2, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    assert lab.tracked("driven")[0].info.status == "RUNNING" and lab.steps("driven") < STEPS

    client = lab.cluster.client
    refused = lab.outside("pretrain", *recipe, "--address", client)
    assert "a run 'driven' exists" in refused.communicate(timeout=SECONDS)[0] and refused.returncode == 2
    ended(lab.outside("pretrain", *recipe, "--resume", "--address", client))
    assert lab.tracked("driven")[1] == undisturbed


def test_elastic_workers_go_on_with_fewer_and_grow_again(lab: Lab) -> None:
    """It takes some 40 s: workers start three times, and a node."""
    nodes, (first, second) = lab.cluster.nodes, lab.trainers()
    recipe = lab.recipe("elastic", epochs=1000, min_workers=1)
    run = lab.cluster.run("pretrain", *recipe, "--address", lab.cluster.address, first=IMPATIENT)
    lab.reach("elastic", 3, run)
    nodes.pop(first).kill()
    at = lab.steps("elastic")
    lab.reach("elastic", at + 3, run)
    assert workers_of(nodes[second]) == 1, "as it was, although a second one of half the size would fit beside it"
    lab.cluster.start("fifth", cpus=1)
    wait_for(lambda: workers_of(nodes[second]) == workers_of(nodes["fifth"]) == 1, SECONDS)
    grown = lab.steps("elastic")
    lab.reach("elastic", grown + 3, run)
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
