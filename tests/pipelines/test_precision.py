"""Number formats follow the hardware."""

from __future__ import annotations

import torch

from pipelines.precision import autocast, resolve_precision

CPU = torch.device("cpu")


def test_auto_takes_bf16_only_where_the_cpu_multiplies_it() -> None:
    flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split()
    native = "amx_bf16" in flags or "avx512_bf16" in flags
    assert resolve_precision("auto", CPU) == (torch.bfloat16 if native else torch.float32)


def test_a_choice_is_obeyed() -> None:
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert resolve_precision(name, CPU) == dtype
        with autocast(dtype, CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
