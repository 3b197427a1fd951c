"""Running workers to the end: what is tried again, what is not, and what is said."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.data
import ray.train
from ray.util.state import list_actors

from pipelines.run.causes import CalledAwayError, WorkersFailedError
from pipelines.run.config import ComputeConfig
from pipelines.training.driver import Failures, _split
from pipelines.training.placement import Placement, Plans, has_room
from tests.cluster.nodes import wait_for


def failure(**workers: Exception) -> ray.train.WorkerGroupError:
    return ray.train.WorkerGroupError("all of it", {int(name[1:]): error for name, error in workers.items()})


def test_failures_count_while_a_run_gets_no_further(capsys: pytest.CaptureFixture[str]) -> None:
    failures = Failures(limit=2)
    for step in (0, 0, 5, 5, 9):
        failures.count(failure(w0=RuntimeError("no luck")), step)
    assert failures.total == 5
    failures.count(failure(w0=RuntimeError("no luck")), 9)
    with pytest.raises(WorkersFailedError, match="failed 3 times in a row: worker 0: RuntimeError: no luck; --resume"):
        failures.count(failure(w0=RuntimeError("no luck")), 9)
    assert "going on from step 5 (try 2 of 2 that compute.restarts allows)" in capsys.readouterr().err


def test_a_run_without_restarts_ends_at_its_first_failure() -> None:
    with pytest.raises(WorkersFailedError, match="no luck; --resume continues it from step 3"):
        Failures(limit=0).count(failure(w0=RuntimeError("no luck")), 3)


def test_a_trial_that_was_stopped_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray Tune ends the processes that a trial has started, after it has set an event in the trial's own."""
    stopped = threading.Event()
    monkeypatch.setattr("pipelines.training.driver.get_session", lambda: SimpleNamespace(stop_event=stopped))
    failures = Failures(limit=3)
    failures.count(ray.exceptions.ActorDiedError(), 6)
    assert "going on from step 6" in capsys.readouterr().err
    stopped.set()
    with pytest.raises(CalledAwayError):
        failures.count(ray.exceptions.ActorDiedError(), 6)
    assert capsys.readouterr().err == ""


def test_what_died_is_named_not_what_failed_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    gloo = RuntimeError("Traceback\n  File x\nRuntimeError: Connection closed by peer. Check the logs of the others.")
    died = ray.exceptions.ActorDiedError()
    Failures(limit=1).count(failure(w0=gloo, w1=died), 0)
    said = capsys.readouterr().err
    assert "worker 1: ActorDiedError: The actor died unexpectedly" in said and "worker 0" not in said
    Failures(limit=1).count(failure(w0=gloo), 0)
    assert "worker 0: RuntimeError: Connection closed by peer.;" in capsys.readouterr().err


def test_elastic_workers_divide_the_batch() -> None:
    assert ComputeConfig(workers=8, min_workers=2).counts(64) == [8, 4, 2]
    assert ComputeConfig(workers=6, min_workers=1).counts(96) == [6, 4, 3, 2, 1]
    assert ComputeConfig(workers=6).counts(96) == [6]
    with pytest.raises(ValueError, match=r"compute.min_workers must be from 1 to compute.workers \(2\), got 3"):
        ComputeConfig(workers=2, min_workers=3)


@pytest.mark.slow
def test_elastic_workers_are_as_many_as_have_room(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 2 CPUs: four workers of half a CPU leave none to decode; three of a third would, and two do."""
    monkeypatch.setattr("pipelines.training.placement.SECONDS_FOR_ROOM", 1.0)
    plans = Plans(ComputeConfig(workers=4, min_workers=1, cpus_per_worker=0.5), batch_size=8)
    assert [plan.workers for plan in plans.possible()] == [2, 1]
    assert plans.choose(threading.Event()).workers == 2
    group = ray.util.placement_group([{"CPU": 1.4}])
    ray.get(group.ready())
    assert plans.choose(threading.Event()).workers == 1
    ray.util.remove_placement_group(group)


def test_workers_keep_the_size_they_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two nodes one is lost; on the other two workers of half a CPU would leave one to draw views."""
    nodes = [{"CPU": 2.0}, {"CPU": 2.0}]
    monkeypatch.setattr("pipelines.training.placement.training_nodes", lambda: (nodes, 0.0))
    elastic, fixed = (Plans(ComputeConfig(workers=2, min_workers=least), batch_size=8) for least in (1, None))
    assert [str(plan) for plan in elastic.possible()] == ["2 workers of 1 CPU", "1 workers of 1 CPU"]
    nodes.pop()
    assert [str(plan) for plan in elastic.possible()] == ["1 workers of 1 CPU"]
    with pytest.raises(ValueError, match="2 workers of 1 CPUs do not fit"):
        fixed.possible()


def test_elastic_workers_have_gpus_where_the_fewest_of_them_find_some(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0}] * 4
    monkeypatch.setattr("pipelines.training.placement.training_nodes", lambda: (nodes, 0.0))
    assert [str(plan) for plan in Plans(ComputeConfig(workers=8, min_workers=4), 64).possible()] == [
        "4 workers of 1 CPU and 1 GPU"
    ]
    assert str(Plans(ComputeConfig(workers=8), 64).possible()[0]) == "8 workers of 3 CPU"


@pytest.mark.slow
def test_a_run_that_waits_for_room_can_be_told_to_end(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.training.placement.SECONDS_FOR_ROOM", 0.5)
    told = threading.Event()
    group = ray.util.placement_group([{"CPU": 2.0}])
    ray.get(group.ready())
    assert not has_room(Placement(1, {"CPU": 1.0}), 1, 0.5)
    threading.Timer(1.0, told.set).start()
    with pytest.raises(CalledAwayError):
        Plans(ComputeConfig(), batch_size=8).choose(told)
    ray.util.remove_placement_group(group)
    assert "waiting for room on the cluster: 1 workers of 1 CPU" in capsys.readouterr().err


def test_a_stream_whose_workers_are_gone_draws_no_more(ray_session: None) -> None:
    """It would hold the CPUs for which the stream of the next workers waits."""

    def draw(row: dict[str, int]) -> dict[str, int]:
        time.sleep(0.2)
        return row

    datasets = {"views": lambda: ray.data.range(10_000, override_num_blocks=500).map(draw)}
    with pytest.raises(RuntimeError, match="gone"), _split(datasets, 1) as shards:
        assert len(next(iter(shards[0]["views"].iter_batches(batch_size=1)))["id"]) == 1
        raise RuntimeError("the workers are gone")
    drawing: list[Any] = [("class_name", "=", "SplitCoordinator"), ("state", "=", "ALIVE")]
    wait_for(lambda: not list_actors(filters=drawing), seconds=30)
    assert shards, "it ended although it is still known here, as to workers that fail"
