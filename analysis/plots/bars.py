"""The strongest nodes, one bar each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...protos.errors import InvalidArgument
from .style import BLUE, GREY, ORANGE, Figure, finished, new, numbers, plain, styled, title

__all__ = ["score_bars"]


@styled
def score_bars(
    names: Sequence[str],
    scores: Any,
    *,
    errors: Any = None,
    top: int = 20,
    ordered: bool = True,
    what: str = "",
    how: str = "",
    label: str = "score",
    path: str | Path | None = None,
) -> Figure:
    """A bar for each of the `top` largest |scores| [node], largest first (as given without `ordered`).

    `errors` [node] draws ± bars. Positive bars are orange, negative blue. `what`, `how` and `path` as in `heat_map`.
    Raises InvalidArgument when names, scores and errors differ in length.
    """
    values = numbers(scores, "scores", 1)
    spread = None if errors is None else numbers(errors, "errors", 1)
    if len(names) != len(values) or (spread is not None and len(spread) != len(values)):
        raise InvalidArgument(f"{len(names)} names, {len(values)} scores and errors of another length do not match")
    strongest = np.argsort(-np.abs(values), kind="stable")[:top]
    chosen = strongest if ordered else np.sort(strongest)
    figure, axes = new(6.0, 1.1 + 0.22 * len(chosen))
    rows = np.arange(len(chosen))
    colours = [ORANGE if value > 0 else BLUE for value in values[chosen]]
    axes.barh(rows, values[chosen], color=colours, height=0.72, zorder=2)
    if spread is not None:
        axes.errorbar(values[chosen], rows, xerr=spread[chosen], fmt="none", ecolor=GREY, elinewidth=1, zorder=3)
    axes.axvline(0.0, color=GREY, linewidth=0.8, zorder=3)
    axes.set_yticks(rows, [plain(names[int(index)]) for index in chosen])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", zorder=0)
    axes.set_xlabel(label)
    title(axes, what, how)
    return finished(figure, path)
