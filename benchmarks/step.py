"""One training step: the reference's way beside ours, the same weights and views, in turn on one machine.

    python -m benchmarks.step --arch vit_small_patch16_224 vit_base_patch16_224 --batch 8 32

A batch of B images is 2 B views of 224 px. bf16 contenders run where the hardware multiplies bf16; elsewhere it is
emulated, hundreds of times slower, and tells nothing.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import reference_loss
from benchmarks.report import markdown_table, write_results
from benchmarks.timing import interleave, spread
from lodisc.attention import fuse_attention
from lodisc.config import EncoderConfig, LocalView, ModelConfig
from lodisc.model import LoDisc
from lodisc.precision import autocast, fused_trains_faster, resolve_precision
from pipelines.training.timing import peak_flops

REFERENCE = "reference fp32"
MOMENTUM = 0.99


@dataclass(frozen=True)
class Contender:
    """A way to take a step: the call that takes one, and the number format of its matrix products."""

    step: Callable[[], float]
    dtype: torch.dtype


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["vit_small_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for arch in arguments.arch:
        for batch in arguments.batch:
            rows += measure(arch, batch, arguments.rounds)
            write_results(arguments.out, rows)
    print(table(rows))


def measure(arch: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row a contender: {arch, batch, contender, seconds, speedup, gflops, mfu, peak_tflops}."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = LoDisc(EncoderConfig(arch=arch), ModelConfig()).to(device)
    views = torch.randn(2, batch, 3, 224, 224, device=device)
    dtypes = dict.fromkeys((torch.float32, resolve_precision("auto", device)))
    peaks = {dtype: peak_flops(device, dtype) for dtype in dtypes}
    contenders = contenders_of(model, views, list(dtypes))
    operations = {name: count_flops(contender.step) for name, contender in contenders.items()}
    times = interleave({name: contender.step for name, contender in contenders.items()}, rounds)
    seconds = {name: spread(values) for name, values in times.items()}
    return [
        {
            "arch": arch,
            "batch": batch,
            "contender": name,
            "seconds": time,
            "speedup": seconds[REFERENCE]["median"] / time["median"],
            "gflops": operations[name] / 1e9,
            "mfu": operations[name] / time["median"] / peaks[contenders[name].dtype],
            "peak_tflops": peaks[contenders[name].dtype] / 1e12,
        }
        for name, time in seconds.items()
    ]


def contenders_of(model: LoDisc, views: Tensor, dtypes: list[torch.dtype]) -> dict[str, Contender]:
    """Return the contenders by name: the reference, and each local view in each number format."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = torch.optim.AdamW(trained, lr=1e-6, foreach=False)
    fused = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    contenders = {REFERENCE: Contender(functools.partial(reference_step, model, plain, views), torch.float32)}
    local_views: tuple[LocalView, ...] = ("pixels", "tokens")
    for dtype in dtypes:
        for local_view in local_views:
            name = f"{local_view} {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
            contenders[name] = Contender(functools.partial(step, model, fused, views, local_view, dtype), dtype)
    return contenders


def reference_step(model: LoDisc, optimizer: torch.optim.Optimizer, views: Tensor) -> float:
    loss, _ = reference_loss(model, views[0], views[1], MOMENTUM)
    return finish(loss, optimizer)


def step(
    model: LoDisc, optimizer: torch.optim.Optimizer, views: Tensor, local_view: LocalView, dtype: torch.dtype
) -> float:
    model.config = replace(model.config, local_view=local_view)
    fuse_attention(model.encoder.vit, fused_trains_faster(dtype, views.device))
    model.update_momentum(MOMENTUM)
    with autocast(dtype, views.device):
        loss, _ = model(views[0], views[1])
    return finish(loss, optimizer)


def finish(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Take the step, and wait for it: reading the loss waits for all that the device was asked before."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def count_flops(take_step: Callable[[], float]) -> float:
    """Return the floating-point operations of a step's matrix products. The step is a warm-up, too."""
    with FlopCounterMode(display=False) as counter:
        take_step()
    return float(counter.get_total_flops())


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    header = ("encoder", "batch", "step", "s (min-max)", "reference / it", "GFLOP", "MFU")
    return markdown_table(
        header,
        [
            (
                row["arch"],
                row["batch"],
                row["contender"],
                f"{row['seconds']['median']:.2f} ({row['seconds']['min']:.2f}-{row['seconds']['max']:.2f})",
                f"{row['speedup']:.2f}",
                f"{row['gflops']:.0f}",
                f"{100 * row['mfu']:.0f} %",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
