"""How much of the model's behaviour a circuit keeps as it grows, one curve a method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...protos.errors import InvalidArgument
from .style import GREY, PALETTE, Figure, finished, new, numbers, plain, styled, title

__all__ = ["faithfulness_curves"]

_MARKERS = "osD^vPX*"


@styled
def faithfulness_curves(
    fractions: Any,
    curves: Mapping[str, Any],
    *,
    what: str = "",
    how: str = "",
    x_label: str = "share of units kept",
    path: str | Path | None = None,
) -> Figure:
    """`curves` maps a method to its faithfulness at each of `fractions` (0 … 1, ascending), drawn on a log axis.

    Where the fractions reach 1 the legend gives CPR, the area under the curve (more is better), and CMD, the area between it and 1 (less is
    better), over linear fractions as MIB (Mueller et al. 2025) has them: CPR of units ranked by signed score, CMD of
    units ranked by magnitude, so only one of the two is MIB's for a given ranking. `what`, `how` and `path` as in `heat_map`.
    Raises InvalidArgument for fractions that do not ascend within 0 … 1, or curves of another length.
    """
    kept = numbers(fractions, "fractions", 1)
    if not curves:
        raise InvalidArgument("there is no curve to draw; give at least one method")
    if (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] > 1:
        raise InvalidArgument(f"fractions must ascend within 0 … 1, got {kept.tolist()}")
    figure, axes = new(8.4, 3.8)
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.axhline(0.0, color=GREY, linewidth=0.8, zorder=1)
    for index, (name, values) in enumerate(curves.items()):
        found = numbers(values, f"curve {name!r}", 1)
        if found.shape != kept.shape:
            raise InvalidArgument(f"curve {name!r} has {len(found)} points for {len(kept)} fractions")
        colour, marker = PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)]
        axes.plot(kept, found, color=colour, marker=marker, label=plain(name + _areas(found, kept)), zorder=3)
    axes.set_xscale("log" if kept[0] > 0 else "symlog", **({} if kept[0] > 0 else {"linthresh": kept[1]}))
    _percent_axis(axes, kept)
    axes.set(xlabel=x_label, ylabel="faithfulness")
    axes.grid(axis="y", zorder=0)
    cast("Any", figure).legend(loc="outside right upper", borderaxespad=1.5)
    title(axes, what, how)
    return finished(figure, path)


def _areas(found: Any, kept: Any) -> str:
    """CPR and CMD; of a part of the axis they would mean nothing."""
    if kept[-1] < 1:
        return ""
    cpr, cmd = float(np.trapezoid(found, kept)), float(np.trapezoid(np.abs(1 - found), kept))
    return f"\nCPR {cpr:.2f}, CMD {cmd:.2f}"


def _percent_axis(axes: Any, kept: Any) -> None:
    """The fractions themselves, where they do not crowd."""
    ticks: list[float] = []
    for value in kept.tolist():
        if not ticks or ticks[-1] == 0 or value / ticks[-1] > 1.6:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{100 * value:.3g} %" for value in ticks])
    axes.minorticks_off()
