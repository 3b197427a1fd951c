"""Number formats follow the hardware."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from lodisc.config import Precision
from lodisc.precision import autocast, fused_trains_faster, resolve_precision

CPU = torch.device("cpu")


def test_auto_takes_bf16_only_where_the_cpu_multiplies_it() -> None:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    native = "amx_bf16" in flags or "avx512_bf16" in flags
    assert resolve_precision("auto", CPU) == (torch.bfloat16 if native else torch.float32)


def test_only_bf16_on_cpus_leaves_the_fused_kernel() -> None:
    assert not fused_trains_faster(torch.bfloat16, CPU)
    assert fused_trains_faster(torch.float32, CPU)
    assert fused_trains_faster(torch.bfloat16, torch.device("cuda"))


def test_a_choice_is_obeyed() -> None:
    assert set(get_args(Precision)) == {"auto", "fp32", "bf16"}
    assert resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(dtype, CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
