"""Write what benchmarks/results measured into docs/results.md and README.md: tables, differences and curves.

    python -m benchmarks.results.page

Of the pages only what stands between `<!-- NAME -->` and `<!-- end -->` is written; the words are their authors'.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.report import markdown_table, put
from benchmarks.results.contenders import LODISC, LONGER, MOCO, PIXELS, SETS, STEP_OF, VARIANTS
from benchmarks.results.costs import RECIPES, read_costs
from benchmarks.results.paired import difference
from benchmarks.results.rows import UNTRAINED, WATCHED, Row, path_of, read

PAGE, README = Path("docs/results.md"), Path("README.md")
CURVES = "docs/images/results-{}.png"
SCORES = {
    "knn/fine": "k-NN fine",
    "knn/coarse": "k-NN coarse",
    "retrieval/rank1": "Rank-1",
    "retrieval/rank5": "Rank-5",
    "retrieval/map": "mAP",
    "linear/top1": "linear top-1",
    "linear/top5": "linear top-5",
    "rankme": "RankMe",
}
CLAIMED = ("retrieval/rank1", "knn/fine", "linear/top1")
BRIEF = ("knn/fine", "knn/coarse", "retrieval/rank1", "retrieval/map", "linear/top1")
ORDER = [UNTRAINED, MOCO, LONGER, LODISC, PIXELS, *(way.name for way in VARIANTS)]
COLOURS = {MOCO: "#D55E00", LODISC: "#0072B2", PIXELS: "#009E73"}


def main() -> None:
    """Write the pages."""
    PAGE.write_text(filled(PAGE.read_text()))
    README.write_text(filled_in_brief(README.read_text()))
    for data in SETS:
        draw_curves(read(path_of(data))).savefig(CURVES.format(data), dpi=110)


def filled(page: str) -> str:
    """Return docs/results.md with the tables of the rows that there are."""
    for data in SETS:
        own = read(path_of(data))
        page = put(page, f"scores {data}", scores_table(own))
        page = put(page, f"differences {data}", differences_table(own))
        if data in RECIPES:
            page = put(page, f"costs {data}", costs_table(own, read_costs(data)))
    return page


def filled_in_brief(page: str) -> str:
    """Return README.md with the tables of the contenders but the variants."""
    variants = {way.name for way in VARIANTS}
    for data in RECIPES:
        own = [row for row in read(path_of(data)) if row["contender"] not in variants]
        page = put(page, f"scores {data}", scores_table(own, BRIEF))
    return page


def by_contender(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each contender, by seed, in the order of the tables.

    Raises:
        ValueError: a contender has no place there.
    """
    if unknown := {row["contender"] for row in rows} - set(ORDER):
        raise ValueError(f"benchmarks/results: rows of {', '.join(sorted(unknown))}, which no table has; remove them")
    found = {
        name: sorted((row for row in rows if row["contender"] == name), key=lambda row: row["seed"]) for name in ORDER
    }
    return {name: own for name, own in found.items() if own}


def scores_table(rows: Sequence[Row], scores: Sequence[str] = tuple(SCORES)) -> str:
    """Return the mean and standard deviation over seeds of scores."""
    cells = [
        (name, len(own), *(mean_and_deviation([row["scores"][score] for row in own]) for score in scores))
        for name, own in by_contender(rows).items()
    ]
    return markdown_table(("encoder", "seeds", *(SCORES[score] for score in scores)), cells)


def costs_table(rows: Sequence[Row], costs: Mapping[str, Row]) -> str:
    """Return what the steps of each contender take, by the cost of one."""
    cells = []
    for name, own in by_contender(rows).items():
        if (cost := costs.get(STEP_OF.get(name, name))) is not None:
            steps = own[0]["steps"]
            hours, minutes = steps * cost["cpu_hours_per_step"], steps * cost["seconds"]["median"] / 60
            cells.append((name, steps, f"{cost['images_per_second']:.0f}", f"{minutes:.1f}", f"{hours:.3f}"))
    return markdown_table(("encoder", "steps", "images/s", "minutes", "CPU-hours"), cells)


def differences_table(rows: Sequence[Row]) -> str:
    """Return LoDisc minus each other contender over the seeds that both have, of the scores that claims are made of."""
    contenders = {name: {row["seed"]: row["scores"] for row in own} for name, own in by_contender(rows).items()}
    lodisc = contenders.pop(LODISC, {})
    cells = []
    for name, own in contenders.items():
        seeds = sorted(lodisc.keys() & own.keys())
        if len(seeds) > 1:
            pairs = [
                ([lodisc[seed][score] for seed in seeds], [own[seed][score] for seed in seeds]) for score in CLAIMED
            ]
            found = [difference(*pair) for pair in pairs]
            cells.append((name, len(seeds), *(f"{one.mean:+.1f} ({one.low:+.1f} to {one.high:+.1f})" for one in found)))
    return markdown_table(("LoDisc minus", "seeds", *(SCORES[score] for score in CLAIMED)), cells)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return both as text; one value has no deviation."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def draw_curves(rows: Sequence[Row]) -> Figure:
    """Draw what was watched over the epochs of the main contenders: each seed thin, their mean thick."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(WATCHED)), WATCHED.items(), strict=True):
        for name, colour in COLOURS.items():
            curves = [row["curves"][metric] for row in by_contender(rows).get(name, [])]
            for curve in curves:
                axes.plot(curve["epochs"], curve["values"], color=colour, linewidth=0.8, alpha=0.4)
            if curves:
                mean = [statistics.mean(values) for values in zip(*(curve["values"] for curve in curves), strict=True)]
                axes.plot(curves[0]["epochs"], mean, color=colour, linewidth=2, marker="o", markersize=3, label=name)
        axes.set(xlabel="epoch", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    return figure


if __name__ == "__main__":
    main()
