"""Attention of a ViT: torch's fused kernel beside plain matrix products, in turn on one machine.

    python -m benchmarks.attention --out benchmarks/results/attention.json

One layer by itself: forward and backward, as the encoder is trained, and forward without gradient, as the momentum
encoder passes. bf16 is measured where the hardware multiplies it.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.report import markdown_table, write_results
from benchmarks.timing import interleave, spread
from lodisc.precision import resolve_precision

# Views, heads, tokens, width of a head.
SHAPES = {
    "recipe grocery, 128 views of 64 px": (128, 2, 65, 32),
    "ViT-S/16, 32 views of 224 px": (32, 6, 197, 64),
}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention.json"))
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = dict.fromkeys((torch.float32, resolve_precision("auto", device)))
    rows = [
        measure(name, dtype, device, arguments.rounds, way) for name in SHAPES for dtype in dtypes for way in PASSES
    ]
    write_results(arguments.out, rows)
    print(table(rows))


def measure(name: str, dtype: torch.dtype, device: torch.device, rounds: int, passed: str) -> dict[str, Any]:
    """Return {layer, dtype, pass, fused, plain}, the latter two in seconds."""
    q, k, v = (torch.randn(SHAPES[name], dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    ways = {
        "fused": functools.partial(PASSES[passed], scaled_dot_product_attention, q, k, v),
        "plain": functools.partial(PASSES[passed], plain, q, k, v),
    }
    for way in ways.values():
        way()
    times = {way: spread(seconds) for way, seconds in interleave(ways, rounds).items()}
    return {"layer": name, "dtype": str(dtype).removeprefix("torch."), "pass": passed, **times}


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention as timm does without the fused kernel."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def train(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Run forward and backward, and wait for them."""
    loss = attention(q, k, v).float().sum()
    torch.autograd.grad(loss, (q, k, v))
    return float(loss.item())


@torch.no_grad()
def look(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Run forward alone, and wait for it."""
    return float(attention(q, k, v).float().sum().item())


PASSES = {"with gradient": train, "without": look}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    return markdown_table(
        ("layer", "format", "pass", "fused, ms", "plain, ms", "plain / fused"),
        [
            (
                row["layer"],
                row["dtype"],
                row["pass"],
                *(milliseconds(row[way]) for way in ("fused", "plain")),
                f"{row['plain']['median'] / row['fused']['median']:.2f}",
            )
            for row in rows
        ],
    )


def milliseconds(times: dict[str, float]) -> str:
    """Return the median, and in brackets the fastest and the slowest call."""
    median, fastest, slowest = (1000 * times[name] for name in ("median", "min", "max"))
    return f"{median:.1f} ({fastest:.1f} to {slowest:.1f})"


if __name__ == "__main__":
    main()
