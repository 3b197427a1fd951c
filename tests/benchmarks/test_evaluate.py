"""The loops that evaluation is timed against compute what it computes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.evaluate import (
    loop_knn,
    loop_map,
    made_features,
    measure_memory,
    numpy_similarity,
    our_knn,
    our_map,
    torch_similarity,
)


def test_all_ways_agree() -> None:
    features, labels = made_features(300)
    queries = np.arange(300)
    for similarity in (torch_similarity(features), numpy_similarity(features)):
        assert loop_knn(similarity, labels.numpy(), queries) == pytest.approx(our_knn(features, labels), abs=0.4)
        assert loop_map(similarity, labels.numpy(), queries) == pytest.approx(our_map(features, labels), abs=0.01)


def test_memory_is_that_of_the_probes() -> None:
    assert 0 <= measure_memory(500)["mib_over_features"] < 2048
