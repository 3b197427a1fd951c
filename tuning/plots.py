"""Pictures of a sweep: every trial across all fields, the score over each field, and which fields matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tuning.space import RANGES, Domain, plain

COLOURS = "viridis"
MARGIN = 0.06
# Values of the searched fields, the score, and whether the trial went to its end.
Compared = Sequence[tuple[Mapping[str, Any], float, bool]]


def parallel_coordinates(space: Mapping[str, Domain], trials: Compared, score: str, best_is_high: bool) -> Figure:
    """Draw a line for each trial over an axis for each field, with the score on the last; the best is drawn last.

    Args:
        space: the searched fields.
        trials: at least one.
        score: name of the score.
        best_is_high: whether more of it is better.
    """
    figure = Figure(figsize=(2.2 * (len(space) + 1) + 1, 4.6), layout="constrained")
    axes = figure.add_subplot()
    scores = np.array([value for _, value, _ in trials])
    low, high = _limits(scores)
    order = np.argsort(scores if best_is_high else -scores)
    for index in order:
        params, value, completed = trials[index]
        heights = [*(_height(space[field], params[field]) for field in space), (value - low) / (high - low)]
        style = {"linewidth": 2.2, "alpha": 1.0} if completed else {"linewidth": 1.2, "alpha": 0.55, "linestyle": "--"}
        axes.plot(range(len(heights)), heights, color=_colour(value, low, high), **style)
    for place, (field, domain) in enumerate(space.items()):
        _ruler(axes, place, *_ticks(domain))
        axes.text(place, -MARGIN - 0.05, field, ha="center", va="top")
    _ruler(axes, len(space), np.linspace(0, 1, 5), [f"{value:.3g}" for value in np.linspace(low, high, 5)])
    axes.text(len(space), -MARGIN - 0.05, score, ha="center", va="top")
    axes.set(xlim=(-0.4, len(space) + 0.5), ylim=(-0.2, 1 + MARGIN))
    axes.axis("off")
    axes.set_title("each line a trial; dashed: stopped early or not ended", fontsize=10, color="0.35")
    return figure


def response(space: Mapping[str, Domain], trials: Compared, score: str, best_is_high: bool) -> Figure:
    """Draw the score over each field, and for each pair of ranges where in their plane the trials scored what."""
    pairs = list(combinations([field for field, domain in space.items() if domain.kind in RANGES], 2))
    rows = [list(space)] + ([pairs] if pairs else [])
    columns = max(map(len, rows))
    figure = Figure(figsize=(4.2 * columns + 1, 3.7 * len(rows)), layout="constrained")
    scores = np.array([value for _, value, _ in trials])
    low, high = _limits(scores)
    best = int(np.argmax(scores) if best_is_high else np.argmin(scores))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, field in zip(grid[0], space, strict=False):
        heights = [(params[field], value) for params, value, _ in trials]
        _scatter(axes, space, (field, None), heights, trials, best, (low, high))
        axes.set(xlabel=field, ylabel=score)
    for axes, (first, second) in zip(grid[-1], pairs, strict=False):
        _scatter(axes, space, (first, second), [(p[first], p[second]) for p, _, _ in trials], trials, best, (low, high))
        axes.set(xlabel=first, ylabel=second)
    for row, drawn in zip(grid, rows, strict=True):
        for axes in row[len(drawn) :]:
            axes.axis("off")
    figure.colorbar(ScalarMappable(Normalize(low, high), COLOURS), ax=grid.ravel().tolist(), label=score, shrink=0.7)
    figure.suptitle(
        "filled: went to the end; hollow: stopped early or not ended; ringed: best", fontsize=10, color="0.35"
    )
    return figure


def importance_bars(shares: Mapping[str, float], title: str) -> Figure:
    """Draw the importance of each field, the largest at the top."""
    figure = Figure(figsize=(7, 0.6 * len(shares) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(shares)[::-1], list(shares.values())[::-1], color=colormaps[COLOURS](0.45), height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set(xlim=(0, 1), xlabel=title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scatter(
    axes: Axes,
    space: Mapping[str, Domain],
    fields: tuple[str, str | None],
    places: Sequence[tuple[Any, Any]],
    trials: Compared,
    best: int,
    limits: tuple[float, float],
) -> None:
    for number, ((x, y), (_, value, completed)) in enumerate(zip(places, trials, strict=True)):
        colour = _colour(value, *limits)
        if number == best:
            axes.scatter(_shown(x), _shown(y), s=190, facecolors="none", edgecolors="0.25", linewidths=1.2)
        face = colour if completed else "none"
        axes.scatter(_shown(x), _shown(y), s=60, facecolors=face, edgecolors=colour, linewidths=1.8)
    for field, name in zip(fields, "xy", strict=True):
        if field is not None and space[field].kind == "log":
            # Labels that fit a small picture: matplotlib's own lie over one another.
            low, high = space[field].values
            ticks = np.geomspace(low, high, 5).tolist()
            axes.set(**{f"{name}scale": "log", f"{name}ticks": ticks})
            axes.set(**{f"{name}ticklabels": _ticks(space[field])[1]})
            getattr(axes, f"{name}axis").set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _shown(value: Any) -> Any:
    """Return a value as an axis takes it: numbers as they are, anything else as a category."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(plain(value))


def _limits(scores: np.ndarray) -> tuple[float, float]:
    low, high = float(scores.min()), float(scores.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _colour(value: float, low: float, high: float) -> Any:
    return colormaps[COLOURS]((value - low) / (high - low))


def _height(domain: Domain, value: Any) -> float:
    """Return where on its axis, from 0 to 1, a value lies."""
    if domain.kind not in RANGES:
        values = [plain(each) for each in domain.values]
        return values.index(plain(value)) / max(1, len(values) - 1)
    low, high = domain.values
    if domain.kind == "log":
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float((value - low) / (high - low))


def _ticks(domain: Domain) -> tuple[Sequence[float], Sequence[str]]:
    if domain.kind not in RANGES:
        return [_height(domain, value) for value in domain.values], [str(plain(value)) for value in domain.values]
    low, high = domain.values
    values = np.geomspace(low, high, 5) if domain.kind == "log" else np.linspace(low, high, 5)
    return np.linspace(0, 1, 5).tolist(), [f"{value:.2g}" for value in values]


def _ruler(axes: Axes, place: float, heights: Sequence[float] | np.ndarray, labels: Sequence[str]) -> None:
    axes.plot([place, place], [0, 1], color="0.4", linewidth=1, zorder=0)
    for height, label in zip(heights, labels, strict=True):
        axes.text(place + 0.04, height, label, fontsize=8, color="0.25", va="center", backgroundcolor=(1, 1, 1, 0.6))
