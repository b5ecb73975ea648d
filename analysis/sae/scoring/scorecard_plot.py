"""Figures of several SAEs on one scale: a row a figure, a colour an SAE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ....protos.errors import InvalidArgument
from ...plots.style import GREY, PALETTE, Figure, finished, new, plain, styled, title
from .intervals import Estimate

__all__ = ["Row", "score_dots"]

LOW, HIGH = -0.05, 1.05
"""What lies beyond is marked at the edge, with its number."""
REFERENCE_MARKERS = ("|", "x", "+")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of each SAE."""

    label: str
    values: Mapping[str, Estimate]
    """SAE → figure; those without it are left out."""
    on_scale: bool = True
    """Whether it lies between 0 and 1 where all is well."""
    references: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    """What the same is without any SAE, by name; at most one a marker of `REFERENCE_MARKERS`."""


@styled
def score_dots(
    rows: Sequence[Row],
    names: Sequence[str],
    *,
    controls: Sequence[str] = (),
    what: str = "",
    how: str = "",
    path: str | Path | None = None,
) -> Figure:
    """A dot and its interval a row and SAE, 0 … 1; controls are hollow. `what`, `how` and `path` as in `heat_map`.

    Raises InvalidArgument when there is nothing to draw.
    """
    if not any(math.isfinite(value.value) for row in rows for value in row.values.values()):
        raise InvalidArgument("there is no figure to draw; run an evaluation first")
    figure, axes = new(8.0, 1.6 + (0.2 + 0.1 * len(names)) * len(rows))
    step = min(0.22, 0.7 / max(len(names), 1))
    for index, name in enumerate(names):
        colour = PALETTE[index % len(PALETTE)]
        hollow = name in controls
        style: dict[str, Any] = {
            "color": colour,
            "markerfacecolor": "white" if hollow else colour,
            "markeredgecolor": colour,
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": "none",
            "zorder": 3,
        }
        axes.plot([], [], label=f"{plain(name)} (control)" if hollow else plain(name), **style)
        for number, row in enumerate(rows):
            value = row.values.get(name)
            if value is not None and math.isfinite(value.value):
                height = number + (index - (len(names) - 1) / 2) * step
                _dot(axes, value, height, style)
    for kind, reference in enumerate(dict.fromkeys(name for row in rows for name in row.references)):
        style = {
            "color": GREY,
            "marker": REFERENCE_MARKERS[kind % 3],
            "markersize": 7,
            "linestyle": "none",
            "zorder": 4,
        }
        axes.plot([], [], label=plain(reference), **style)
        for number, row in enumerate(rows):
            if reference in row.references:
                axes.plot([row.references[reference].value], [number], **style)
    for number in range(len(rows) - 1):
        axes.axhline(number + 0.5, color=GREY, linewidth=0.3, alpha=0.5, zorder=1)
    axes.set(xlim=(LOW, HIGH), ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), [plain(row.label) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", zorder=0)
    cast("Any", figure).legend(loc="outside lower center", ncols=3)
    title(axes, what, how)
    return finished(figure, path)


def _dot(axes: Any, value: Estimate, height: float, style: dict[str, Any]) -> None:
    if LOW <= value.value <= HIGH:
        if math.isfinite(value.low):
            axes.plot([value.low, value.high], [height, height], color=style["color"], linewidth=1.2, zorder=2)
        axes.plot([value.value], [height], **style)
        return
    left = value.value < LOW
    edge, marker = (LOW, "<") if left else (HIGH, ">")
    axes.plot([edge], [height], clip_on=False, **{**style, "marker": marker})
    axes.annotate(
        f"{value.value:.2f}",
        (edge, height),
        (6 if left else -6, 0),
        textcoords="offset points",
        ha="left" if left else "right",
        va="center",
        fontsize=7,
        color=style["color"],
    )
