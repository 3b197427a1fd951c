from __future__ import annotations

import numpy as np
import pytest
import torch

from lodisc.probes.ranking import rankings


@pytest.mark.parametrize("max_pairs", [1, 7, 40, 10_000])
def test_order_is_by_cosine_then_by_place_in_the_gallery(max_pairs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(12, 6, generator=generator)
    gallery[9] = gallery[2]
    gallery[5] = 4 * gallery[2]
    queries = torch.randn(7, 6, generator=generator)

    ranked = list(rankings(queries, gallery, max_pairs))
    rows = torch.cat([rows for _, rows in ranked])
    similarities = torch.cat([values for values, _ in ranked])

    for query, row, values in zip(queries.numpy(), rows.tolist(), similarities.tolist(), strict=True):
        cosine = [float(query @ g / np.linalg.norm(query) / np.linalg.norm(g)) for g in gallery.numpy()]
        expected = sorted(range(12), key=lambda i: (-round(cosine[i], 5), i))
        assert row == expected
        np.testing.assert_allclose(values, [cosine[i] for i in expected], atol=1e-6)


def test_equal_rows_stay_equal_at_any_width() -> None:
    """Matrix kernels treat the last columns apart: equal gallery rows could come out different."""
    gallery = torch.randn(1, 301).repeat(77, 1)
    for similarities, rows in rankings(torch.randn(33, 301), gallery):
        assert (similarities == similarities[:, :1]).all()
        assert (rows == torch.arange(77)).all()
