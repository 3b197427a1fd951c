from __future__ import annotations

from benchmarks.diagnostics import CASES, CURVES, HEALTHY, POINTS, draw, table, thinned
from pipelines.config import load_recipe


def test_the_cases_are_runs_of_the_demo_recipe() -> None:
    assert CASES[HEALTHY] == {}
    for overrides in CASES.values():
        load_recipe("demo", {"data.images": "birds", **overrides})


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    curve = {"epochs": [float(n) for n in range(1000)], "values": [2.0 * n for n in range(1000)]}
    found = thinned(curve)
    assert len(found["epochs"]) <= POINTS and found["epochs"][-1] == 999.0
    assert found["values"] == [2 * epoch for epoch in found["epochs"]]
    assert thinned({"epochs": [1.0], "values": [3.0]}) == {"epochs": [1.0], "values": [3.0]}


def test_every_curve_of_every_case_is_drawn() -> None:
    curve = {"epochs": [0.0, 1.0, 2.0], "values": [1.0, 2.0, 4.0]}
    rows = [{"case": case, "curves": dict.fromkeys(CURVES, curve)} for case in CASES]
    assert [len(axes.lines) for axes in draw(rows).axes] == [len(CASES)] * len(CURVES)
    assert table(rows).splitlines()[2] == "| healthy | " + " | ".join(["4"] * len(CURVES)) + " |"
