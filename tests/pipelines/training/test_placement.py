"""Resource arithmetic: what fits is placed, what would hang is refused."""

from __future__ import annotations

import pytest

from pipelines.run.config import ComputeConfig
from pipelines.training.placement import plan_workers, threads_of


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
    plan = plan_workers(compute, [cluster])
    assert plan.resources == {"CPU": cpus, **({"GPU": 1.0} if gpus else {})}
    assert plan.workers * cpus + 1 <= cluster["CPU"]


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
        plan_workers(compute, [cluster])


def test_a_worker_is_no_larger_than_a_node() -> None:
    small, large = {"CPU": 2.0}, {"CPU": 8.0}

    def cpus(workers: int, nodes: list[dict[str, float]]) -> float:
        return plan_workers(ComputeConfig(workers=workers), nodes).resources["CPU"]

    assert cpus(1, [large, large]) == 8.0
    assert cpus(2, [large, large]) == 6.0
    assert cpus(3, [large, large]) == 4.0
    assert cpus(1, [small] * 4) == 2.0
    assert cpus(4, [small] * 4) == 1.0
    assert cpus(2, [large, small, {"memory": 1.0}]) == 3.0
    with pytest.raises(
        ValueError, match=r"compute: 2 workers of 4 CPUs do not fit on the cluster.s 3 nodes \(10 CPUs\)"
    ):
        plan_workers(ComputeConfig(workers=2, cpus_per_worker=4), [{"CPU": 6.0}, small, small])


def test_a_worker_with_a_gpu_is_where_a_gpu_is() -> None:
    gpu, plain = {"CPU": 1.0, "GPU": 2.0}, {"CPU": 16.0}
    assert plan_workers(ComputeConfig(workers=4), [gpu, gpu, plain]).resources == {"CPU": 0.5, "GPU": 1.0}
    assert plan_workers(ComputeConfig(workers=1), [gpu, plain]).resources == {"CPU": 1.0, "GPU": 1.0}


def test_where_other_nodes_draw_views_workers_take_every_cpu() -> None:
    nodes = [{"CPU": 1.0}, {"CPU": 1.0}]
    with pytest.raises(ValueError, match="with a CPU left for decoding images"):
        plan_workers(ComputeConfig(workers=2), nodes)
    plan = plan_workers(ComputeConfig(workers=2), nodes, ingest_cpus=1.0)
    assert plan.resources == {"CPU": 1.0} and plan.labels == {"ingest": "!true"}
    assert plan_workers(ComputeConfig(workers=2), [{"CPU": 8.0}], ingest_cpus=4.0).resources == {"CPU": 4.0}
    gpus = [{"CPU": 2.0, "GPU": 2.0}]
    assert plan_workers(ComputeConfig(workers=2), gpus, ingest_cpus=4.0).resources == {"CPU": 1.0, "GPU": 1.0}
    with pytest.raises(ValueError, match="beside those that draw views"):
        plan_workers(ComputeConfig(workers=2, cpus_per_worker=2), nodes, ingest_cpus=4.0)
    assert plan_workers(ComputeConfig(), [{"CPU": 2.0}]).labels == {}


def test_a_worker_without_gpu_has_its_whole_share_of_the_node() -> None:
    assert threads_of(ComputeConfig(), "cpu", reserved=1.0, share=2.0) == 2
    assert threads_of(ComputeConfig(workers=2), "cpu", reserved=0.5, share=1.0) == 1
    assert threads_of(ComputeConfig(workers=4), "cpu", reserved=0.25, share=0.5) == 1
    assert threads_of(ComputeConfig(cpus_per_worker=3), "cpu", reserved=3.0, share=8.0) == 3
    assert threads_of(ComputeConfig(), "cuda", reserved=1.0, share=24.0) == 1
