from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lodisc.probes import geometry
from lodisc.probes.geometry import alignment, rankme, uniformity


def randn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(50, 7), (7, 50), (1, 5), (20, 20)])
@pytest.mark.parametrize("chunk", [3, 2**14])
def test_rankme_is_the_papers_equation(shape: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "CHUNK", chunk)
    features = randn(*shape) * torch.logspace(0, -2, shape[1])
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    p = singular / singular.sum() + 1e-7
    assert rankme(features) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_rankme_of_known_spectra() -> None:
    assert rankme(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    assert rankme(randn(5000, 16)) == pytest.approx(16, rel=1e-2)
    assert rankme(randn(200, 1) * randn(1, 64, seed=1)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(4, 3)) == pytest.approx(1, abs=1e-3)


def test_alignment_is_the_mean_squared_distance() -> None:
    x, y = randn(30, 6), randn(30, 6, seed=1)
    expected = np.mean(
        [
            np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2)
            for a, b in zip(x.numpy(), y.numpy(), strict=True)
        ]
    )
    assert alignment(x, y) == pytest.approx(float(expected), rel=1e-5)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-9)
    assert alignment(x, -x) == pytest.approx(4)


@pytest.mark.parametrize("max_pairs", [1, 100, 2**22])
def test_uniformity_is_the_log_mean_potential_of_distinct_pairs(max_pairs: int) -> None:
    x = randn(40, 5)
    x[3] = x[7]
    x[11] = 0
    unit = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)).double().numpy()
    potentials = [math.exp(-2 * np.sum((unit[i] - unit[j]) ** 2)) for i in range(40) for j in range(40) if i != j]
    assert uniformity(x, max_pairs=max_pairs) == pytest.approx(math.log(np.mean(potentials)), rel=1e-5)


def test_uniformity_bounds_and_sampling() -> None:
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    x = randn(600, 6)
    assert uniformity(x, max_images=300) == uniformity(x, max_images=300)
    assert uniformity(x, max_images=300) != uniformity(x, max_images=300, seed=1)
    assert uniformity(x, max_images=300) == pytest.approx(uniformity(x), abs=0.1)


def test_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match="x and y must pair up row by row"):
        alignment(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="at least two images, got 1"):
        uniformity(torch.ones(1, 2))
    with pytest.raises(ValueError, match="features must be floating point"):
        rankme(torch.ones(3, 2, dtype=torch.long))
