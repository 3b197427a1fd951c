"""Two gloo processes with half the batch each compute what one process computes with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lodisc.batch_norm import GlobalBatchNorm1d
from lodisc.distributed import average, gather, rank, world_size
from tests.lodisc.tiny import tiny_images, tiny_model

WORLD, BATCH, STEPS = 2, 8, 5


def share(batch: Tensor) -> Tensor:
    """Return this worker's rows of the global batch."""
    return batch.chunk(world_size())[rank()]


def train() -> dict[str, Any]:
    """Take steps in float64 on this worker's share; return losses, the first step's gradients and the last state."""
    torch.set_num_threads(1)
    model = tiny_model()
    replica = DistributedDataParallel(model, broadcast_buffers=False) if world_size() > 1 else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    losses, gradients = [], {}
    for step in range(STEPS):
        model.update_momentum(0.9)
        views = (share(tiny_images(BATCH, seed, torch.float64)) for seed in (2 * step, 2 * step + 1))
        loss, metrics = replica(*views)
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append({name: average(metrics[name]) for name in ("loss", "loss/local", "contrastive/top1")})
    return {"losses": losses, "gradients": gradients, "state": model.state_dict()}


def normalise_batch() -> dict[str, Any]:
    """Run one global batch norm forward and backward on this worker's share."""
    torch.manual_seed(0)
    layer = (GlobalBatchNorm1d if world_size() > 1 else nn.BatchNorm1d)(5)
    x = share(torch.randn(BATCH, 5) * 3 + 7).requires_grad_()
    weights = share(torch.randn(BATCH, 5))
    y = layer(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    return {"output": gather(y), "gradient": gather(x.grad), "statistics": dict(layer.named_buffers())}


def work(worker: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=worker, world_size=WORLD)
    gathered = gather(torch.full((2, 1), float(worker)))
    result = {"train": train(), "batch norm": normalise_batch(), "gathered": gathered, "rank": rank()}
    torch.save(result, Path(folder) / f"{worker}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{worker}.pt", weights_only=True) for worker in range(WORLD)]


@pytest.mark.slow
def test_workers_gather_in_rank_order(two_workers: list[dict[str, Any]]) -> None:
    for worker, result in enumerate(two_workers):
        assert result["rank"] == worker
        assert result["gathered"].flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.slow
def test_two_workers_normalise_like_one(two_workers: list[dict[str, Any]]) -> None:
    expected = normalise_batch()
    for result in two_workers:  # float32: sums in another order
        torch.testing.assert_close(result["batch norm"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_workers_train_like_one(two_workers: list[dict[str, Any]]) -> None:
    threads = torch.get_num_threads()
    expected = train()
    torch.set_num_threads(threads)
    for result in two_workers:  # float64; AdamW divides rounding errors by small gradients
        torch.testing.assert_close(result["train"]["losses"], expected["losses"], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(result["train"]["gradients"], expected["gradients"], rtol=1e-7, atol=1e-11)
        torch.testing.assert_close(result["train"]["state"], expected["state"], rtol=1e-6, atol=1e-8)


def test_no_process_group_is_a_world_of_one() -> None:
    x = torch.ones(2, requires_grad=True)
    assert (world_size(), rank()) == (1, 0)
    assert torch.equal(gather(x), x.detach())
    assert not gather(x).requires_grad
    assert torch.equal(average(x), x.detach())
