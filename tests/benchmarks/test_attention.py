from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention import PASSES, measure, plain, table


def test_both_ways_compute_the_same() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    torch.testing.assert_close(plain(q, k, v), scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("passed", PASSES)
def test_both_ways_are_timed(passed: str) -> None:
    row = measure("recipe grocery, 128 views of 64 px", torch.float32, torch.device("cpu"), 2, passed)
    assert all(0 < row[way]["min"] <= row[way]["median"] <= row[way]["max"] for way in ("fused", "plain"))


def test_table() -> None:
    fused, plain = {"median": 0.002, "min": 0.001, "max": 0.003}, {"median": 0.001, "min": 0.0005, "max": 0.004}
    row = {"layer": "ours", "dtype": "bfloat16", "pass": "without", "fused": fused, "plain": plain}
    last = "| ours | bfloat16 | without | 2.0 (1.0 to 3.0) | 1.0 (0.5 to 4.0) | 0.50 |"
    assert table([row]).splitlines()[-1] == last
