"""What docs/results.md is made of: contenders, rows, differences, and the places of the page."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results.contenders import LODISC, LONGER, MAIN, MOCO, SEEDS, VARIANTS, DataSet
from benchmarks.results.costs import for_the_time_of, measure_costs
from benchmarks.results.page import CLAIMED, PAGE, SCORES, differences_table, draw_curves, put, scores_table
from benchmarks.results.paired import difference
from benchmarks.results.rows import UNTRAINED, keep, read
from pipelines.config import to_dict

DATA = DataSet("demo", "train", "watched", "test")
T_OF_TWO = 4.302653  # the 97.5 % point of Student's t with 2 degrees of freedom


def row(contender: str, seed: int, value: float, **more: Any) -> dict[str, Any]:
    scores = dict.fromkeys(SCORES, value)
    curve = {"epochs": [0.0, 1.0], "values": [0.0, value]}
    curves = dict.fromkeys(("eval/retrieval/rank1", "eval/knn/fine", "eval/rankme"), curve)
    return {"set": "demo", "contender": contender, "seed": seed, "scores": scores, "curves": curves, **more}


def test_contenders_differ_from_the_recipe_in_what_they_are_named_for() -> None:
    plain = to_dict(DATA.config(MAIN[1], 0, "runs"))
    names = set()
    for contender in (*MAIN, *VARIANTS):
        config = DATA.config(contender, 0, "runs")
        names.add(config.name)
        changed = {key for key, value in to_dict(config)["model"].items() if value != plain["model"][key]}
        assert {f"model.{key}" for key in changed} == set(contender.overrides)
        assert to_dict(config)["optim"] == plain["optim"]
    assert len(names) == len(MAIN) + len(VARIANTS)


def test_longer_runs_take_as_long_as_lodisc() -> None:
    costs = {MOCO: {"seconds": {"median": 0.1}}, LODISC: {"seconds": {"median": 0.12}}}
    longer = for_the_time_of(LODISC, costs)
    assert longer.name == LONGER and longer.length == pytest.approx(1.2)
    epochs = DATA.config(MAIN[0], 0, "runs").optim.epochs
    assert DATA.config(longer, 0, "runs").optim.epochs == math.ceil(1.2 * epochs)


def test_costs_are_of_the_contenders_own_steps() -> None:
    rows = {row["contender"]: row for row in measure_costs(DATA, MAIN[:2])}
    assert set(rows) == {MOCO, LODISC}
    for cost in rows.values():
        assert cost["seconds"]["min"] <= cost["seconds"]["median"] <= cost["seconds"]["max"]
        assert cost["images_per_second"] == pytest.approx(32 / cost["seconds"]["median"])


def test_a_run_has_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    for value in (1.0, 2.0):
        keep(path, row(MOCO, 0, value))
    keep(path, row(MOCO, 1, 3.0))
    assert [(found["seed"], found["scores"]["knn/fine"]) for found in read(path)] == [(0, 2.0), (1, 3.0)]
    assert "demo: MoCo v3, seed 1: knn/fine 3.0" in capsys.readouterr().out


def test_the_interval_is_students() -> None:
    ours, theirs = [5.0, 7.0, 9.5], [4.0, 5.0, 6.0]
    found = difference(ours, theirs)
    differences = [1.0, 2.0, 3.5]
    half = T_OF_TWO * statistics.stdev(differences) / math.sqrt(3)
    assert found.mean == pytest.approx(statistics.mean(differences))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), rel=1e-5)
    with pytest.raises(ValueError, match="two seeds"):
        difference([1.0], [2.0])


def test_tables_and_curves() -> None:
    values = {UNTRAINED: (0.0, 1.0, 3.0), MOCO: (9.0, 12.0, 12.0), LODISC: (20.0, 21.0, 22.0)}
    rows = [row(name, seed, value) for name, of_seeds in values.items() for seed, value in enumerate(of_seeds)]
    lines = scores_table(rows).splitlines()
    assert lines[4].startswith(f"| {LODISC} | 21.0 ± 1.0 |")
    assert [line.split(" |")[0] for line in lines[2:]] == [f"| {name}" for name in (UNTRAINED, MOCO, LODISC)]
    last = differences_table(rows).splitlines()[-1]
    assert last == f"| LoDisc - MoCo v3 |{' +10.0 (+7.5 to +12.5) |' * len(CLAIMED)}"
    lines_drawn = [len(axes.lines) for axes in draw_curves(rows).axes]
    assert lines_drawn == [2 * (len(SEEDS) + 1)] * 3


def test_only_the_places_of_the_page_are_written() -> None:
    page = "words\n<!-- a -->\nold\n<!-- end -->\nmore\n<!-- b -->\n<!-- end -->\n"
    assert put(page, "a", "new") == page.replace("old", "new")
    assert put(page, "b", "new").endswith("<!-- b -->\nnew\n<!-- end -->\n")
    with pytest.raises(ValueError, match="no place for 'c'"):
        put(page, "c", "new")
    assert PAGE.name == "results.md"
