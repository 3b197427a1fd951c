from __future__ import annotations

import numpy as np
import pytest
import torch

from lodisc.probes.ranking import nearest, places_of, ranking_keys, similarities_of, sorted_keys


@pytest.mark.parametrize("max_pairs", [1, 7, 40, 10_000])
def test_order_is_by_cosine_then_by_place_in_the_gallery(max_pairs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(12, 6, generator=generator)
    gallery[9] = gallery[2]
    gallery[5] = 4 * gallery[2]
    queries = torch.randn(7, 6, generator=generator)

    chunks = list(ranking_keys(queries, gallery, max_pairs))
    assert all(len(chunk) == max(1, max_pairs // 12) for chunk in chunks[:-1])
    keys = sorted_keys(torch.cat(chunks))

    for query, row, values in zip(queries.numpy(), places_of(keys), similarities_of(keys), strict=True):
        cosine = [float(query @ g / np.linalg.norm(query) / np.linalg.norm(g)) for g in gallery.numpy()]
        expected = sorted(range(12), key=lambda i: (-round(cosine[i], 5), i))
        assert row.tolist() == expected
        np.testing.assert_allclose(values.numpy(), [cosine[i] for i in expected], atol=1e-6)


def test_extremes_of_similarity_keep_their_place() -> None:
    gallery = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    keys = next(ranking_keys(gallery[2:3], gallery))
    assert places_of(keys).tolist() == [[0, 1, 2, 3]]
    assert similarities_of(keys).tolist() == [[-1, 0, 1, 0]]
    assert places_of(sorted_keys(keys)).tolist() == [[2, 1, 3, 0]]


def test_equal_rows_stay_equal_at_any_width() -> None:
    """Matrix kernels treat the last columns apart: equal gallery rows could come out different."""
    gallery = torch.randn(1, 301).repeat(77, 1)
    for keys in ranking_keys(torch.randn(33, 301), gallery):
        similarities = similarities_of(keys)
        assert (similarities == similarities[:, :1]).all()
        assert (places_of(sorted_keys(keys)) == torch.arange(77)).all()


def test_nearest_rows_are_those_of_the_cosine_without_the_query_itself() -> None:
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    queries = torch.tensor([4, 0, 29])
    places, similarity = nearest(rows[queries], rows, 6, own=queries)
    cosine = unit[queries] @ unit.T
    assert nearest(rows[queries], rows, 1)[0].squeeze(1).tolist() == queries.tolist()
    for row, query in enumerate(queries.tolist()):
        others = [place for place in cosine[row].argsort(descending=True).tolist() if place != query]
        assert places[row].tolist() == others[:6]
        torch.testing.assert_close(similarity[row], cosine[row, others[:6]], atol=1e-8, rtol=0)
