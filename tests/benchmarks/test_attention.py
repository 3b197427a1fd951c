from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention import measure, plain, table


def test_both_ways_compute_the_same() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    torch.testing.assert_close(plain(q, k, v), scaled_dot_product_attention(q, k, v))


def test_table() -> None:
    row = measure("recipe grocery, 128 views of 64 px", torch.float32, torch.device("cpu"), rounds=1)
    assert "| float32 |" in table([row])
