"""What docs/results.md is made of: contenders, rows, differences, and the places of the page."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from benchmarks.report import put
from benchmarks.results import costs
from benchmarks.results.contenders import LODISC, LONGER, MAIN, MOCO, SEEDS, SETS, VARIANTS, DataSet, data_set, longer
from benchmarks.results.costs import time_share
from benchmarks.results.page import (
    CLAIMED,
    CURVES,
    PAGE,
    SCORES,
    costs_table,
    differences_table,
    draw_curves,
    scores_table,
)
from benchmarks.results.paired import difference
from benchmarks.results.rows import UNTRAINED, keep, read
from lodisc.encoder import Encoder
from pipelines.config import to_dict

GREY = {"views.grey_probability": 1.0}
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
    share = time_share(LODISC, {MOCO: {"seconds": {"median": 0.1}}, LODISC: {"seconds": {"median": 0.12}}})
    assert share == pytest.approx(1.2)
    epochs = DATA.config(MAIN[0], 0, "runs").optim.epochs
    (alone,) = longer(DATA, share)
    assert alone.name == LONGER and DATA.config(alone, 0, "runs").optim.epochs == math.ceil(1.2 * epochs)
    plain, own = (DATA.config(way, 0, "runs") for way in longer(replace(DATA, own_views=GREY), share))
    assert own.views == replace(plain.views, grey_probability=1.0)
    assert (own.model, own.optim) == (plain.model, plain.optim) and own.name != plain.name


def test_a_step_of_moco_is_timed_without_the_local_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, bool]] = []
    whole = Encoder.forward

    def counted(self: Encoder, images: Tensor, kept: Tensor | None = None) -> Tensor:
        passes.append((len(images), kept is not None))
        return whole(self, images, kept)

    monkeypatch.setattr(Encoder, "forward", counted)
    monkeypatch.setattr(costs, "ROUNDS", 1)
    rows = {row["contender"]: row for row in costs.measure_costs(DATA, MAIN[:2])}
    assert set(rows) == {MOCO, LODISC}
    # Both views of a batch of 32 together, of the encoder and of the momentum encoder; twice, with the warm-up.
    assert passes.count((64, False)) == 8 and passes.count((64, True)) == 2
    assert all(cost["images_per_second"] == pytest.approx(32 / cost["seconds"]["median"]) for cost in rows.values())


def test_the_data_sets_of_the_page_are_those_that_are_measured(tmp_path: Path) -> None:
    demo, grocery = (data_set(name, Path("groceries"), tmp_path) for name in SETS)
    assert len(list(Path(demo.train).rglob("*.jpg"))) == 960 and len(list(Path(demo.test).rglob("*.jpg"))) == 320
    assert len({demo.train, demo.watched, demo.test}) == 3
    assert (grocery.train, grocery.watched, grocery.test) == tuple(
        f"groceries/{split}.txt" for split in ("train", "val", "test")
    )
    own = longer(grocery, 1.0)[1]
    assert {name.split(".")[0] for name in own.overrides} == {"model", "views"}


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
    assert lines[4].startswith(f"| {LODISC} | 3 | 21.0 ± 1.0 |")
    assert [line.split(" |")[0] for line in lines[2:]] == [f"| {name}" for name in (UNTRAINED, MOCO, LODISC)]
    last = differences_table(rows).splitlines()[-1]
    assert last == f"| MoCo v3 | 3 |{' +10.0 (+7.5 to +12.5) |' * len(CLAIMED)}"
    lines_drawn = [len(axes.lines) for axes in draw_curves(rows).axes]
    assert lines_drawn == [2 * (len(SEEDS) + 1)] * 3
    fewer = [row for row in rows if row["contender"] == LODISC or row["seed"] == 0]
    assert differences_table(fewer).count("\n") == 1, "one seed has no interval"
    assert "| MoCo v3 | 1 | 9.0 |" in scores_table(fewer)


def test_costs_are_those_of_all_steps() -> None:
    cost = {"images_per_second": 320.4, "seconds": {"median": 0.1}, "cpu_hours_per_step": 0.2 / 3600}
    rows = [row(MOCO, 0, 1.0, steps=600), row(LONGER, 0, 1.0, steps=1200), row(UNTRAINED, 0, 1.0, steps=0)]
    lines = costs_table(rows, {MOCO: cost}).splitlines()[2:]
    assert lines == ["| MoCo v3 | 600 | 320 | 1.0 | 0.033 |", f"| {LONGER} | 1200 | 320 | 2.0 | 0.067 |"]


def test_the_page_has_a_place_for_everything() -> None:
    page = PAGE.read_text()
    for data in SETS:
        for table in ("scores", "differences", "costs"):
            assert put(page, f"{table} {data}", "new") != page
        assert CURVES.format(data).removeprefix("docs/") in page
