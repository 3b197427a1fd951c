"""Which number format a device computes fast in."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from lodisc.config import Precision


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the autocast dtype for `precision` on `device`: torch.bfloat16, or torch.float32 for no autocast.

    "auto" takes bfloat16 where the hardware multiplies it natively. Elsewhere bfloat16 is emulated: on a CPU without
    AMX or AVX512-BF16 a matrix product is hundreds of times slower than in float32.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def fused_trains_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch's fused attention is the faster one to train with.

    On CPUs in bf16 its backward pass is slow, its forward pass is not (`benchmarks/attention.py`, measured with AMX).
    """
    return device.type != "cpu" or dtype != torch.bfloat16


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which a forward pass computes in `dtype` on `device`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
