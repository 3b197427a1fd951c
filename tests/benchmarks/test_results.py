"""What docs/results.md is made of: contenders, rows, differences, and the places of the page."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from benchmarks.report import put
from benchmarks.results import contenders, costs
from benchmarks.results.contenders import (
    LODISC,
    LONGER,
    MAIN,
    MOCO,
    RANDOM,
    SEEDS,
    SETS,
    SHORT,
    VARIANTS,
    WIDE,
    DataSet,
    data_set,
    groups,
    make_demo_images,
)
from benchmarks.results.costs import RECIPES, read_costs
from benchmarks.results.page import (
    BRIEF,
    CLAIMED,
    CURVES,
    ORDER,
    PAGE,
    README,
    SCORES,
    costs_table,
    differences_table,
    draw_curves,
    filled,
    filled_in_brief,
    scores_table,
)
from benchmarks.results.paired import difference
from benchmarks.results.rows import UNTRAINED, keep, read
from lodisc.encoder import Encoder
from pipelines.demo.birds import SPECIES
from pipelines.run.config import PretrainConfig, load_recipe, to_dict

DATA = DataSet("birds", "demo", "train", "watched", "test", longer=25)
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


def differing(one: PretrainConfig, other: PretrainConfig) -> dict[str, Any]:
    """Return the fields of a config that differ from another's, but those that say where the run lies."""
    ours, theirs = to_dict(one), to_dict(other)
    parts = ("encoder", "model", "views", "optim")
    pairs = ((part, name, value) for part in parts for name, value in ours[part].items())
    return {f"{part}.{name}": value for part, name, value in pairs if value != theirs[part][name]}


def test_longer_and_shorter_runs_and_other_views() -> None:
    recipe = load_recipe("demo", {"data.images": "train"})
    (longer,) = (way for group in groups(DATA) for way in group if way.name == LONGER)
    assert differing(DATA.config(longer, 0, "runs"), recipe) == {"model.local_weight": 0.0, "optim.epochs": 25}
    sets = {name: data_set(name, Path("groceries"), Path("runs")) for name in SETS}
    grocery, short, wide = (
        sets[name].config(MAIN[1], 0, "runs") for name in ("grocery", "grocery-short", "grocery-wide")
    )
    assert differing(short, grocery) == SHORT
    assert differing(wide, grocery).keys() == WIDE.keys()
    varied = {name: [way.name for group in groups(data)[1:] for way in group] for name, data in sets.items()}
    everything = [way.name for way in VARIANTS]
    assert varied == {"demo": everything, "grocery": [RANDOM.name], "grocery-short": [], "grocery-wide": everything}


@pytest.mark.parametrize("name", SETS)
def test_longer_runs_take_as_long_as_lodisc_in_whole_epochs(name: str) -> None:
    data = data_set(name, Path("groceries"), Path("runs"))
    costs = read_costs(data.recipe)
    share = costs[LODISC]["seconds"]["median"] / costs[MOCO]["seconds"]["median"]
    assert data.longer == math.ceil(share * data.config(MAIN[1], 0, "runs").optim.epochs)


def test_a_step_of_moco_is_timed_without_the_local_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, bool]] = []
    whole = Encoder.forward

    def counted(self: Encoder, images: Tensor, kept: Tensor | None = None) -> Tensor:
        passes.append((len(images), kept is not None))
        return whole(self, images, kept)

    monkeypatch.setattr(Encoder, "forward", counted)
    monkeypatch.setattr(costs, "ROUNDS", 1)
    rows = {row["contender"]: row for row in costs.measure_costs("demo", MAIN[:2])}
    assert set(rows) == {MOCO, LODISC}
    # Both views of a batch of 32 together, of the encoder and of the momentum encoder; twice, with the warm-up.
    assert passes.count((64, False)) == 8 and passes.count((64, True)) == 2
    assert all(cost["images_per_second"] == pytest.approx(32 / cost["seconds"]["median"]) for cost in rows.values())


def test_the_data_sets_of_the_page_are_those_that_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: dict[str, dict[str, int]] = {}
    monkeypatch.setattr(contenders, "generate_demo_images", lambda folder, **how: made.update({folder: how}))
    make_demo_images(tmp_path)
    demo, grocery, *others = (data_set(name, Path("groceries"), tmp_path) for name in SETS)
    of_run, of_curves = (made[str(Path(split).parent)] for split in (demo.train, demo.watched))
    assert (Path(demo.train).name, Path(demo.watched).name, Path(demo.test).name) == ("train", "test", "test")
    assert Path(demo.test).parent == Path(demo.train).parent and of_run["seed"] != of_curves["seed"]
    assert len(SPECIES) * of_run["train_per_class"] == 960 and len(SPECIES) * of_run["test_per_class"] == 320
    assert len({demo.train, demo.watched, demo.test}) == 3
    assert (grocery.train, grocery.watched, grocery.test) == tuple(
        f"groceries/{split}.txt" for split in ("train", "val", "test")
    )
    for other in others:
        assert (other.train, other.watched, other.test) == (grocery.train, grocery.watched, grocery.test)


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
    assert scores_table(rows, BRIEF).splitlines()[0].count("|") == len(BRIEF) + 3
    with pytest.raises(ValueError, match="rows of BYOL, which no table has"):
        scores_table([*rows, row("BYOL", 0, 1.0)])


def test_costs_are_those_of_all_steps() -> None:
    cost = {"images_per_second": 320.4, "seconds": {"median": 0.1}, "cpu_hours_per_step": 0.2 / 3600}
    rows = [row(MOCO, 0, 1.0, steps=600), row(LONGER, 0, 1.0, steps=1200), row(UNTRAINED, 0, 1.0, steps=0)]
    lines = costs_table(rows, {MOCO: cost}).splitlines()[2:]
    assert lines == ["| MoCo v3 | 600 | 320 | 1.0 | 0.033 |", f"| {LONGER} | 1200 | 320 | 2.0 | 0.067 |"]


def test_the_pages_are_those_of_the_rows() -> None:
    page, readme = PAGE.read_text(), README.read_text()
    assert filled(page) == page and filled_in_brief(readme) == readme
    for data in SETS:
        assert CURVES.format(data).removeprefix("docs/") in page
    for data in RECIPES:
        assert put(readme, f"scores {data}", "") != readme


def test_every_contender_has_a_place_in_the_tables() -> None:
    sets = [data_set(name, Path("groceries"), Path("runs")) for name in SETS]
    names = {way.name for data in sets for group in groups(data) for way in group}
    assert names | {UNTRAINED} == set(ORDER)
