"""Curves as SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pipelines.takeaway.charts import POINTS, VARIABLES, chart, running_mean, short, thinned
from pipelines.tracking.record import Curve

SVG = "{http://www.w3.org/2000/svg}"


def curve(points: int) -> Curve:
    return Curve([step / 10 for step in range(points)], [1 / (1 + step) for step in range(points)])


def test_a_chart_has_a_line_a_curve_in_the_colours_of_the_page() -> None:
    svg = chart({"a": curve(5), "b": curve(5)}, "%")
    root = ElementTree.fromstring(svg)
    lines = [path.get("style", "") for path in root.iter(f"{SVG}path")]
    for number in (0, 1):
        assert any(f"stroke: var(--line-{number})" in style and "fill: none" in style for style in lines)
    assert "var(--line-2)" not in svg and not any(colour in svg for colour in VARIABLES)
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "epoch" in texts and any(text.endswith("%") for text in texts), "text stays text"


def test_a_noisy_curve_has_a_running_mean_and_a_schedule_has_not() -> None:
    def drawn(smooth: bool) -> int:
        return chart({"a": curve(200)}, smooth=smooth).count("stroke: var(--line-0)")

    assert drawn(True) == 2 and drawn(False) == 1


def test_more_points_than_pixels_are_averaged() -> None:
    epochs, values = np.arange(10_001) / 100, np.random.default_rng(0).normal(size=10_001)
    few_epochs, few = thinned(epochs, values)
    assert len(few) == len(few_epochs) <= POINTS
    assert few[0] == pytest.approx(values[:17].mean()) and few_epochs[0] == pytest.approx(epochs[:17].mean())
    assert few[-1] == pytest.approx(values[len(few) * 17 - 17 :].mean())
    assert thinned(epochs[:600], values[:600])[1] is not None and len(thinned(epochs[:600], values[:600])[1]) == 600


def test_a_running_mean_is_of_the_points_around() -> None:
    assert running_mean(np.array([0.0, 3.0, 6.0, 0.0]), 2).tolist() == [1.5, 3, 3, 3]
    assert running_mean(np.array([1.0, 2.0]), 0).tolist() == [1, 2]


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0, 0.5, 2.294, 99.96, 1e-3, 2.5e-4, 1.63e-7, 123456)] == [
        *("0", "0.5", "2.29", "100", "1e-3", "2.5e-4", "1.6e-7", "1.2e+05"),
    ]
