"""Curves as inline SVG whose colours are the page's: light on dark and dark on light."""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import StringIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.tracking.record import Curve

SERIES = 3  # colours that a page defines
# Colours that no chart has, and the page's variables that take their places.
INK, GRID = "#010203", "#040506"
LINES = ("#070801", "#070802", "#070803")
VARIABLES = {INK: "var(--faint)", GRID: "var(--grid)"} | {
    colour: f"var(--line-{number})" for number, colour in enumerate(LINES)
}
POINTS = 600  # more than a chart has pixels
DENSE = 60  # points, from which on a curve is drawn faint below its running mean


def chart(curves: Mapping[str, Curve], unit: str = "", smooth: bool = True) -> str:
    """Draw at most three curves over epochs.

    Args:
        curves: at least one.
        unit: of the values.
        smooth: draw the running mean of a curve of many points, and the points faint.

    Returns:
        An <svg> element without size. Colours are the variables --faint, --grid and --line-0 to --line-2.
    """
    assert len(curves) <= SERIES, "a page has no more colours"
    figure = Figure(figsize=(4.8, 2.5))
    axes = figure.add_axes((0.12, 0.15, 0.86, 0.81))
    for curve, colour in zip(curves.values(), LINES, strict=False):
        _draw(axes, curve, colour, smooth)
    _style(axes, unit)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lodisc"}):
        stream = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def _draw(axes: Axes, curve: Curve, colour: str, smooth: bool) -> None:
    epochs, values = thinned(np.array(curve.epochs), np.array(curve.values))
    if len(values) < DENSE:
        axes.plot(epochs, values, color=colour, linewidth=1.6, marker="o", markersize=3.2)
        return
    if not smooth:
        axes.plot(epochs, values, color=colour, linewidth=1.6)
        return
    axes.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(epochs, running_mean(values, len(values) // 20), color=colour, linewidth=1.6)


def _style(axes: Axes, unit: str) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8.5, length=0, pad=4)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.01, y=0.08)
    axes.set_xlabel("epoch", color=INK, fontsize=8.5, labelpad=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{short(value)} {unit}".strip())


def short(value: float) -> str:
    """Return a number in at most seven characters."""
    if value and abs(value) < 0.01:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.1e}"


def thinned(epochs: np.ndarray, values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return at most so many points, each the mean of as many that follow one another."""
    group = math.ceil(len(values) / points)
    if group <= 1:
        return epochs, values
    starts = np.arange(0, len(values), group)
    sizes = np.diff([*starts, len(values)])
    return np.add.reduceat(epochs, starts) / sizes, np.add.reduceat(values, starts) / sizes


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of `width` values around each one, of fewer at the ends."""
    window = np.ones(max(1, width) | 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
