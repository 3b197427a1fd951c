"""Resource arithmetic: what fits is placed, what would hang is refused."""

from __future__ import annotations

import pytest

from pipelines.config import ComputeConfig
from pipelines.resources import plan_workers, threads_of


@pytest.mark.parametrize(
    ("compute", "cluster", "cpus", "gpus"),
    [
        (ComputeConfig(), {"CPU": 2.0}, 1.0, 0),
        (ComputeConfig(workers=2), {"CPU": 2.0}, 0.5, 0),
        (ComputeConfig(), {"CPU": 16.0}, 12.0, 0),
        (ComputeConfig(workers=4), {"CPU": 64.0, "GPU": 4.0}, 1.0, 1),
        (ComputeConfig(workers=2), {"CPU": 8.0, "GPU": 1.0}, 3.0, 0),
        (ComputeConfig(cpus_per_worker=3), {"CPU": 8.0}, 3, 0),
        (ComputeConfig(gpus=False), {"CPU": 8.0, "GPU": 8.0}, 6.0, 0),
    ],
)
def test_workers_leave_room_for_data(compute: ComputeConfig, cluster: dict[str, float], cpus: float, gpus: int) -> None:
    plan = plan_workers(compute, cluster)
    assert plan.resources_per_worker == {"CPU": cpus, **({"GPU": 1.0} if gpus else {})}
    assert plan.num_workers * cpus + 1 <= cluster["CPU"]


@pytest.mark.parametrize(
    ("compute", "cluster", "field"),
    [
        (ComputeConfig(), {"CPU": 1.0}, "compute"),
        (ComputeConfig(workers=2, cpus_per_worker=1), {"CPU": 2.0}, "compute.cpus_per_worker"),
        (ComputeConfig(workers=2, gpus=True), {"CPU": 8.0, "GPU": 1.0}, "compute.gpus"),
    ],
)
def test_what_would_hang_is_refused(compute: ComputeConfig, cluster: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        plan_workers(compute, cluster)


def test_a_worker_without_gpu_has_its_whole_share_of_the_node() -> None:
    assert threads_of(ComputeConfig(), "cpu", reserved=1.0, share=2.0) == 2
    assert threads_of(ComputeConfig(workers=2), "cpu", reserved=0.5, share=1.0) == 1
    assert threads_of(ComputeConfig(workers=4), "cpu", reserved=0.25, share=0.5) == 1
    assert threads_of(ComputeConfig(cpus_per_worker=3), "cpu", reserved=3.0, share=8.0) == 3
    assert threads_of(ComputeConfig(), "cuda", reserved=1.0, share=24.0) == 1
