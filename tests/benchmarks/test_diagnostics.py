from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.diagnostics import CASES, CURVES, HEALTHY, PAGE, POINTS, draw, kept, table
from benchmarks.report import put
from pipelines.run.config import load_recipe


def test_the_cases_differ_from_the_demo_recipe_in_what_they_are_named_for() -> None:
    recipes = {case: load_recipe("demo", {"data.images": "birds", **more}) for case, more in CASES.items()}
    plain = recipes[HEALTHY]
    assert recipes["temperature 2"].model.temperature == 10 * plain.model.temperature
    assert recipes["learning rate x 30"].optim.base_lr == pytest.approx(30 * plain.optim.base_lr)
    few = recipes["batch of 4"].optim
    assert few.batch_size == 4
    assert few.base_lr * few.batch_size == pytest.approx(plain.optim.base_lr * plain.optim.batch_size)


def test_long_curves_are_kept_thinned() -> None:
    epochs = np.arange(1000.0)
    found = kept(epochs, 2 * epochs)
    assert len(found["epochs"]) <= POINTS
    assert found["values"] == pytest.approx([2 * epoch for epoch in found["epochs"]], abs=2e-3)
    assert kept(np.array([1.0]), np.array([3.00004])) == {"epochs": [1.0], "values": [3.0]}


def test_every_curve_of_every_case_is_drawn() -> None:
    curve = {"epochs": [0.0, 1.0, 2.0], "values": [1.0, 2.0, 4.0]}
    rows = [{"case": case, "diverged": case != HEALTHY, "curves": dict.fromkeys(CURVES, curve)} for case in CASES]
    assert [len(axes.lines) for axes in draw(rows).axes] == [len(CASES)] * len(CURVES)
    lines = table(rows).splitlines()
    assert lines[2] == "| healthy | " + " | ".join(["4"] * len(CURVES)) + " |"
    assert lines[3].startswith("| learning rate x 30, diverged | 4 |")


def test_the_page_is_that_of_the_rows() -> None:
    rows = json.loads(Path("benchmarks/results/diagnostics.json").read_text())["rows"]
    page = PAGE.read_text()
    assert [row["case"] for row in rows] == list(CASES)
    assert put(page, "diagnostics", table(rows)) == page
