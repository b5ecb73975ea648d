"""A forgetting run, and several of them side by side, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ....protos.errors import InvalidArgument
from ...plots.style import BLUE, GREY, INK, ORANGE, PALETTE, Figure, finished, new, plain, styled, title
from .results import ClampResult, Forgetting

__all__ = ["clamp_scatter", "forgetting_bars"]


@styled
def clamp_scatter(
    run: Forgetting,
    *,
    what: str = "What clamping latents costs, and what it makes the model forget",
    how: str = "",
    path: str | Path | None = None,
) -> Figure:
    """A point a configuration, with 95 % Wilson intervals: forget questions still answered (y), retain questions (x).

    Right of the dashed line a configuration passes the gate; of those the lowest sets the score. Grey dots are the same
    configurations with random latents.
    Raises InvalidArgument where no configuration could be run.
    """
    ran = [result for result in run.results if result.forget is not None]
    if not ran:
        raise InvalidArgument(f"no configuration was run, so there is nothing to draw: {run.summary}")
    figure, axes = new(6.8, 4.6)
    thresholds = sorted({result.clamp.threshold for result in ran})
    sizes = sorted({result.clamp.n_latents for result in ran})
    axes.axvline(run.gate, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, label=f"gate {run.gate:g}")
    for result in ran:
        colour = PALETTE[thresholds.index(result.clamp.threshold) % len(PALETTE)]
        _point(axes, result, colour, "os^Dv"[sizes.index(result.clamp.n_latents) % 5])
    for place, threshold in enumerate(thresholds):
        axes.plot([], [], "o", color=PALETTE[place % len(PALETTE)], label=f"retain threshold {threshold:g}")
    for place, size in enumerate(sizes):
        axes.plot([], [], "os^Dv"[place % 5], color=GREY, label=f"{size} latents")
    if not all(result.passes for result in ran):
        axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="hollow: fails the gate")
    _random_points(axes, run)
    axes.set(xlim=(-0.04, 1.06), ylim=(-0.04, 1.06))
    axes.set_xlabel("retain questions still answered (all sets)")
    axes.set_ylabel("forget questions still answered")
    axes.grid(zorder=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    title(axes, what, how or f"{plain(run.summary.split(';')[0])}; bars are 95 % Wilson intervals")
    return finished(figure, path)


def _random_points(axes: Any, run: Forgetting) -> None:
    found = [
        (result.side_effects.value, result.forget.value)
        for draw in run.controls
        for result in draw
        if result.side_effects is not None and result.forget is not None
    ]
    if found:
        axes.plot(
            *zip(*found, strict=True), ".", color=GREY, markersize=4, alpha=0.6, zorder=2.5, label="random latents"
        )


def _point(axes: Any, result: ClampResult, colour: str, marker: str) -> None:
    kept, forgot = result.side_effects, result.forget
    assert kept is not None, "what ran has side effects"
    assert forgot is not None, "what ran has an accuracy"
    spread = [
        np.array([[accuracy.value - accuracy.interval[0]], [accuracy.interval[1] - accuracy.value]])
        for accuracy in (kept, forgot)
    ]
    axes.errorbar(
        kept.value,
        forgot.value,
        xerr=np.maximum(spread[0], 0),
        yerr=np.maximum(spread[1], 0),
        fmt="none",
        ecolor=colour,
        elinewidth=0.7,
        alpha=0.35,
        zorder=2,
    )
    filled = colour if result.passes else "white"
    axes.plot(kept.value, forgot.value, marker, markersize=6.5, color=colour, markerfacecolor=filled, zorder=3)


@styled
def forgetting_bars(
    runs: Mapping[str, Forgetting],
    *,
    what: str = "Forgetting by clamping latents",
    how: str = "",
    path: str | Path | None = None,
) -> Figure:
    """A bar a run (an SAE, say): its score with the 95 % Wilson interval, and of a zero the reason.

    The interval is that of the best configuration alone, so it does not tell that it was chosen among many; the scores
    of random latents, grey beneath the bar, were chosen likewise.
    """
    if not runs:
        raise InvalidArgument("there is no run to draw; give at least one")
    figure, axes = new(7.2, 1.4 + 0.55 * len(runs))
    rows = np.arange(len(runs))
    _random_scores(figure, axes, list(runs.values()))
    for row, run in zip(rows, runs.values(), strict=True):
        best = run.best
        if run.score == 0 or best is None or best.forget is None:
            axes.annotate(f" 0: {', '.join(run.reasons)}", (0, row), va="center", fontsize=8.5, color=ORANGE)
            continue
        low, high = (1 - edge for edge in reversed(best.forget.interval))
        axes.barh(row, run.score, color=BLUE, height=0.5, zorder=2)
        spread = np.maximum(np.array([[run.score - low], [high - run.score]]), 0)
        axes.errorbar(run.score, row, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5, zorder=3)
        axes.annotate(f"{run.score:.3f}", (1.02, row), va="center", fontsize=8.5, annotation_clip=False)
    axes.set_yticks(rows, [plain(name) for name in runs])
    axes.invert_yaxis()
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.set(xlim=(0, 1), xlabel="score: 1 − lowest forget accuracy of a configuration that passes the gate")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", zorder=0)
    title(axes, what, how or "bars: 95 % Wilson interval of the best configuration")
    return finished(figure, path)


def _random_scores(figure: Figure, axes: Any, runs: Sequence[Forgetting]) -> None:
    """A marker a draw, beneath the bar of its run; equal scores lie a little apart."""
    found: list[tuple[float, float]] = []
    for row, run in enumerate(runs):
        scores = [score for score, draw in zip(run.control_scores, run.controls, strict=True) if _ran(draw)]
        apart = min(0.07, 0.18 / len(scores)) if scores else 0
        found += [(x, row + 0.39 + apart * (i - (len(scores) - 1) / 2)) for i, x in enumerate(scores)]
    if found:
        style = {"color": GREY, "markersize": 3.8, "markeredgecolor": "white", "markeredgewidth": 0.4}
        axes.plot(*zip(*found, strict=True), "o", **style, clip_on=False, zorder=4, label="random latents")
        cast("Any", figure).legend(loc="outside lower right")


def _ran(results: Sequence[ClampResult]) -> bool:
    return any(result.forget is not None for result in results)
