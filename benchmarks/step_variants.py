"""What else might make a step faster: each idea by itself beside the step as it is, in turn on one machine.

    python -m benchmarks.step_variants --out benchmarks/results/step_variants.json

Every step is timed in a process of its own, as allocators and threads are chosen when a process starts. An allocator
that is not installed is left out.
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.report import markdown_table, write_results
from benchmarks.step import step
from benchmarks.timing import spread
from lodisc.config import EncoderConfig, ModelConfig
from lodisc.model import LoDisc
from lodisc.precision import resolve_precision

AS_IT_IS = "as it is"
STEPS = 4


def compiled(model: LoDisc) -> None:
    """Compile the base encoder; the momentum encoder's hooks, which read attention, stay out of it."""
    model.encoder.vit.blocks.compile()


def channels_last(model: LoDisc) -> None:
    model.to(memory_format=torch.channels_last)


def bf16_momentum(model: LoDisc) -> None:
    """Hold the momentum encoder's matrices in bf16 and average them there."""
    for module in (model.momentum_encoder.vit.blocks, model.momentum_projector):
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.to(torch.bfloat16)
    ours = [*model.momentum_encoder.parameters(), *model.momentum_projector.parameters()]
    theirs = [*model.encoder.parameters(), *model.projector.parameters()]

    @torch.no_grad()
    def update(momentum: float) -> None:
        for average, base in zip(ours, theirs, strict=True):
            average.lerp_(base.to(average.dtype), 1 - momentum)

    model.update_momentum = update  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[LoDisc], None]] = {
    "torch.compile": compiled,
    "channels-last weights": channels_last,
    "momentum encoder in bf16": bf16_momentum,
}
ENVIRONMENTS = {
    "glibc: keep freed memory": {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=4294967296:glibc.malloc.mmap_max=0"},
    "glibc: huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "threads bound to cores": {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
    "jemalloc": {"LD_PRELOAD": "jemalloc"},
    "tcmalloc": {"LD_PRELOAD": "tcmalloc_minimal"},
}


def main() -> None:
    """Measure, print and write the table; or, for this command itself, time one variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step_variants.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(time_steps(arguments.one, arguments.arch, arguments.batch)))
        return
    rows = measure(arguments.arch, arguments.batch, arguments.rounds)
    write_results(arguments.out, rows)
    print(table(rows))


def measure(arch: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row a variant: {arch, batch, variant, seconds, first_step, gain}."""
    installed = {name: env for name, env in ENVIRONMENTS.items() if library(env) is not None}
    variants = [AS_IT_IS, *CHANGES, *installed]
    times: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            times[variant].append(with_environment(variant, arch, batch))
    seconds = {variant: spread([run["step"] for run in runs]) for variant, runs in times.items()}
    return [
        {
            "arch": arch,
            "batch": batch,
            "variant": variant,
            "seconds": time,
            "first_step": spread([run["first"] for run in times[variant]]),
            "gain": seconds[AS_IT_IS]["median"] / time["median"],
        }
        for variant, time in seconds.items()
    ]


def library(environment: dict[str, str]) -> str | None:
    """Return the file to preload, an empty string where an environment needs none, None where it is missing."""
    wanted = environment.get("LD_PRELOAD")
    return ctypes.util.find_library(wanted) if wanted else ""


def with_environment(variant: str, arch: str, batch: int) -> dict[str, float]:
    environment = dict(ENVIRONMENTS.get(variant, {}))
    if "LD_PRELOAD" in environment:
        environment["LD_PRELOAD"] = library(environment) or ""
    command = [sys.executable, "-m", "benchmarks.step_variants", "--one", variant, "--arch", arch]
    done = subprocess.run(
        [*command, "--batch", str(batch)], env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def time_steps(variant: str, arch: str, batch: int) -> dict[str, float]:
    """Return the seconds of the first step, and of the fastest of those after it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision("auto", device)
    torch.manual_seed(0)
    model = LoDisc(EncoderConfig(arch=arch), ModelConfig()).to(device)
    CHANGES.get(variant, lambda model: None)(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    views = torch.randn(2, batch, 3, 224, 224, device=device)
    if variant == "channels-last weights":
        views = torch.stack([view.contiguous(memory_format=torch.channels_last) for view in views])
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step(model, optimizer, views, model.config.local_view, dtype)
        seconds.append(time.perf_counter() - started)
    return {"first": seconds[0], "step": min(seconds[1:])}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    header = ("variant", "s a step (min-max)", "gain", "first step, s")
    return markdown_table(
        header,
        [
            (
                row["variant"],
                "{median:.2f} ({min:.2f}-{max:.2f})".format(**row["seconds"]),
                f"{row['gain']:.2f}",
                f"{row['first_step']['median']:.1f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
