"""A number by layer, one line a series: the accuracy of a probe beside its control, say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument
from .style import GREY, PALETTE, Figure, finished, new, numbers, styled, title

__all__ = ["layer_curves"]


@styled
def layer_curves(
    series: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    bands: Mapping[str, tuple[Any, Any]] | None = None,
    chance: float | None = None,
    what: str = "",
    how: str = "",
    label: str = "accuracy",
    path: str | Path | None = None,
) -> Figure:
    """`series` maps a name to [layer]; `bands` a series' name to its (low, high), each [layer]; `chance` draws a level.

    `what`, `how` and `path` as in `heat_map`. Raises InvalidArgument when lengths differ or a band has no series.
    """
    if not series:
        raise InvalidArgument("there is no series to draw; give at least one")
    drawn = {name: numbers(values, f"series {name!r}", 1) for name, values in series.items()}
    first = next(iter(drawn.values()))
    ticks = list(range(len(first))) if layers is None else list(layers)
    wrong = [name for name, values in drawn.items() if len(values) != len(ticks)]
    unknown = [name for name in bands or {} if name not in drawn]
    if wrong or unknown:
        raise InvalidArgument(
            f"series without a number for each of {len(ticks)} layers: {wrong or 'none'}; "
            f"bands without a series: {unknown or 'none'}"
        )
    figure, axes = new(8.4 if len(drawn) > 1 else 6.4, 3.6)
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), va="center", color=GREY, fontsize=8)
    for index, (name, values) in enumerate(drawn.items()):
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(ticks, values, color=colour, marker="o", label=name, zorder=3)
        if bands and name in bands:
            low, high = (numbers(edge, f"band of {name!r}", 1) for edge in bands[name])
            axes.fill_between(ticks, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="layer", ylabel=label)
    axes.grid(axis="y", zorder=0)
    axes.margins(x=0.02)
    if len(drawn) > 1:
        cast("Any", figure).legend(loc="outside right upper", borderaxespad=1.5)
    title(axes, what, how)
    return finished(figure, path)
