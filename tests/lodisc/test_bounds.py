"""Bounds of a config's values, told in one form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lodisc.bounds import bounds


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        ("at least 1", [1, 2.5, None, (1, 3)], [0, 0.9, (1, 0), float("nan")]),
        ("> 0", [1e-9, None], [0, -1, float("nan")]),
        ("in [0, 1]", [0, 1, (0.0, 1.0)], [-0.1, 1.1, (0.5, 2), float("nan")]),
        ("in [0, 1)", [0, 0.99], [1, -1]),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(bound: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        bounds(SimpleNamespace(field=value), "part.", field=bound)
    for value in outside:
        with pytest.raises(ValueError) as refused:
            bounds(SimpleNamespace(field=value), "part.", field=bound)
        assert str(refused.value) == f"part.field must be {bound}, got {value!r}"
