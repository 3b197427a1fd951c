"""Resource arithmetic of a sweep: trials that share a cluster leave room for data, and what would hang is refused."""

from __future__ import annotations

import pytest

from pipelines.run.config import ComputeConfig
from pipelines.training.placement import plan_workers
from tuning.concurrency import CLEANER, MOST_BY_DEFAULT, driver, plan_trials

MANY = 1000


@pytest.mark.parametrize(
    ("compute", "cluster", "trials", "concurrent", "cpus"),
    [
        (ComputeConfig(), {"CPU": 2.0}, MANY, 2, 0.5),
        (ComputeConfig(), {"CPU": 3.0}, MANY, 3, 0.666),
        (ComputeConfig(), {"CPU": 16.0}, MANY, MOST_BY_DEFAULT, 1.0),
        (ComputeConfig(), {"CPU": 16.0}, 3, 3, 4.0),
        (ComputeConfig(workers=2), {"CPU": 8.0}, MANY, 4, 0.75),
        (ComputeConfig(), {"CPU": 16.0, "GPU": 4.0}, MANY, 4, 1.0),
        (ComputeConfig(workers=4), {"CPU": 64.0, "GPU": 16.0}, MANY, 4, 1.0),
        (ComputeConfig(), {"CPU": 4.0, "GPU": 8.0}, MANY, 3, 1.0),
        (ComputeConfig(gpus=False), {"CPU": 8.0, "GPU": 1.0}, MANY, 8, 0.75),
        (ComputeConfig(cpus_per_worker=2.0), {"CPU": 8.0}, MANY, 3, 2.0),
    ],
)
def test_trials_side_by_side_leave_a_cpu_for_data(
    compute: ComputeConfig, cluster: dict[str, float], trials: int, concurrent: int, cpus: float
) -> None:
    found, each = plan_trials(compute, [cluster], trials, None)
    assert (found, each.cpus_per_worker) == (concurrent, cpus)
    assert found * each.workers * cpus + 1 <= cluster["CPU"]
    assert not each.gpus or found * each.workers <= cluster["GPU"]
    placed = plan_workers(each, [cluster])
    assert placed.resources == {"CPU": cpus, **({"GPU": 1.0} if each.gpus else {})}


def test_a_trial_by_itself_takes_what_a_run_takes() -> None:
    compute = ComputeConfig(workers=2)
    assert plan_trials(compute, [{"CPU": 8.0}], 1, None) == (1, compute)
    assert plan_trials(compute, [{"CPU": 8.0}], MANY, 1) == (1, compute)
    assert plan_trials(compute, [{"CPU": 2.0, "GPU": 1.0}], MANY, None) == (1, compute)


@pytest.mark.parametrize(
    ("nodes", "wanted", "concurrent", "cpus"),
    [
        ([{"CPU": 2.0}] * 4, 2, 2, 2.0),
        ([{"CPU": 2.0}] * 4, None, 8, 0.5),
        ([{"CPU": 8.0}, {"CPU": 2.0}], 3, 3, 2.0),
        ([{"CPU": 1.0, "GPU": 2.0}] * 2 + [{"CPU": 16.0}], None, 2, 1.0),
        ([{"CPU": 16.0}, {"GPU": 4.0, "CPU": 8.0}], None, 4, 1.0),
    ],
)
def test_no_worker_is_larger_than_a_node(
    nodes: list[dict[str, float]], wanted: int | None, concurrent: int, cpus: float
) -> None:
    found, each = plan_trials(ComputeConfig(), nodes, MANY, wanted)
    assert (found, each.cpus_per_worker) == (concurrent, cpus)


def test_as_many_drivers_fit_as_trials_were_planned_and_no_more() -> None:
    for concurrent in (*range(1, 100), 500):
        (share,) = driver(concurrent).values()
        assert share > 0 and concurrent * (share + CLEANER) <= 1.0
        assert (concurrent + 1) * share > 1.0 or concurrent > 30


def test_fewer_than_fit_can_be_asked_for_and_more_cannot() -> None:
    assert plan_trials(ComputeConfig(), [{"CPU": 8.0}], MANY, 3) == (3, ComputeConfig(gpus=False, cpus_per_worker=2.0))
    with pytest.raises(ValueError, match=r"concurrent: .* holds 2 trials of 4 workers side by side, got 3"):
        plan_trials(ComputeConfig(workers=4), [{"CPU": 8.0}], MANY, 3)


@pytest.mark.parametrize(
    ("compute", "cluster"),
    [
        (ComputeConfig(), {"CPU": 1.0}),
        (ComputeConfig(workers=2, cpus_per_worker=1.0), {"CPU": 2.0}),
        (ComputeConfig(gpus=True), {"CPU": 8.0}),
    ],
)
def test_a_trial_that_cannot_fit_is_refused(compute: ComputeConfig, cluster: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="compute"):
        plan_trials(compute, [cluster], MANY, None)
