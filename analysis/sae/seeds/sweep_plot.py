"""A sweep as a picture: stability with its intervals, and explained variance beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from ....protos.errors import InvalidArgument
from ...plots.style import GREY, PALETTE, Figure, finished, new, styled, title
from .resampling import Method
from .sweeps import Row, Sweep

__all__ = ["sweep_plot"]

Along = Literal["k", "d_sae"]
DASHED = (0, (4, 3))
_METHODS: dict[Method, str] = {
    "seeds": "bootstrap over seeds",
    "jackknife": "jackknife over seeds",
    "pairs": "bootstrap over pairs",
}


@styled
def sweep_plot(
    sweep: Sweep,
    *,
    along: Along = "k",
    floor: float | None = None,
    what: str = "",
    how: str = "",
    path: str | Path | None = None,
) -> Figure:
    """PWMCC (left) and explained variance (right) along k or d_sae, a line for each value of the other.

    Bars are the intervals of the sweep, bands those of random dictionaries of the same shape; at explained variance,
    bars reach from the worst seed to the best. `floor`: a level of explained variance, drawn. `what`, `how`, `path`: as
    in `plots.heat_map`. Raises InvalidArgument for a sweep with one condition a line, or of several numbers of epochs.
    """
    lines = _lines(sweep, along)
    figure, (left, right) = new(9.2, 3.8, ncols=2, width_ratios=(1.15, 1.0))
    random: Any = None
    for index, (name, rows) in enumerate(lines.items()):
        colour = PALETTE[index % len(PALETTE)]
        ticks = [getattr(row.condition, along) for row in rows]
        trained = [row.comparison.trained for row in rows]
        _bars(left, ticks, [i.mean for i in trained], [(i.low, i.high) for i in trained], colour, name)
        spread = [(float(row.explained_variances.min()), float(row.explained_variances.max())) for row in rows]
        _bars(right, ticks, [row.explained_variance for row in rows], spread, colour, name)
        if along == "k":
            random = _band(left, rows, along, colour if len(lines) > 1 else GREY)
    if along == "d_sae":
        # Random dictionaries know no k, so that all lines have the same.
        sizes = {row.condition.d_sae: row for row in sweep.rows}
        random = _band(left, [sizes[d_sae] for d_sae in sorted(sizes)], along, GREY)
    if floor is not None:
        right.axhline(floor, color=GREY, linewidth=0.8, linestyle=DASHED)
        right.annotate("floor", (1, floor), xycoords=("axes fraction", "data"), va="bottom", ha="right", color=GREY)
    first = sweep.rows[0].comparison.trained
    left.set_ylabel(f"PWMCC, {first.confidence:.0%} by {_METHODS[first.method]}")
    right.set_ylabel("explained variance, held out")
    for axes in (left, right):
        values = sorted({getattr(row.condition, along) for row in sweep.rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.set_xlabel(along)
        axes.grid(axis="y", zorder=0)
    handles, labels = left.get_legend_handles_labels()
    cast("Any", figure).legend(
        [*handles, random], [*labels, "random dictionaries"], loc="outside lower center", ncols=min(6, len(labels) + 1)
    )
    title(left, what, how)
    return finished(figure, path)


def _band(axes: Any, rows: list[Row], along: Along, colour: str) -> Any:
    """Random dictionaries: their mean as a line, which is given back, and their interval as a band."""
    ticks = [getattr(row.condition, along) for row in rows]
    found = [row.comparison.control for row in rows]
    axes.fill_between(ticks, [i.low for i in found], [i.high for i in found], color=colour, alpha=0.25, linewidth=0)
    return axes.plot(ticks, [i.mean for i in found], color=colour, linewidth=1.0, linestyle=DASHED)[0]


def _bars(
    axes: Any, ticks: list[int], means: list[float], spread: list[tuple[float, float]], colour: str, name: str
) -> None:
    low, high = np.array(spread).T
    middle = np.array(means)
    reach = np.maximum(0.0, [middle - low, high - middle])  # rounding may put a mean outside
    axes.errorbar(
        ticks, middle, yerr=reach, color=colour, marker="o", capsize=2.5, elinewidth=1.2, label=name, zorder=3
    )


def _lines(sweep: Sweep, along: Along) -> dict[str, list[Row]]:
    if along not in ("k", "d_sae"):
        raise InvalidArgument(f'along is "k" or "d_sae", got {along!r}')
    if len({row.condition.epochs for row in sweep.rows}) > 1:
        raise InvalidArgument(
            "a line joins conditions that differ in k or d_sae alone; draw each number of epochs apart"
        )
    other = "d_sae" if along == "k" else "k"
    lines: dict[str, list[Row]] = {}
    for row in sorted(sweep.rows, key=lambda row: getattr(row.condition, along)):
        lines.setdefault(f"{other} {getattr(row.condition, other)}", []).append(row)
    if not lines or any(len(rows) < 2 for rows in lines.values()):
        raise InvalidArgument(f"a line along {along} needs two conditions or more with one {other}")
    return lines
