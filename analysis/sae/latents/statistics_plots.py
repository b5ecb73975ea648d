"""Two corpora, latent by latent, as pictures: firing rates against each other, and how important each latent is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ....protos.errors import InvalidArgument
from ...plots.style import BLUE, GREY, INK, ORANGE, Figure, finished, new, plain, styled, title
from .statistics import MEASURES, Comparison, Measure

__all__ = ["importance_histogram", "rate_scatter"]


@styled
def rate_scatter(
    compared: Comparison,
    *,
    marked: Sequence[int] = (),
    retain_threshold: float | None = None,
    what: str = "Firing rates on two corpora",
    how: str = "",
    path: str | Path | None = None,
) -> Figure:
    """A point a latent: its rate on the first corpus (y) against that on the second (x), on logarithmic axes.

    Latents that fire on one corpus alone lie on the edge, at half the rate of a single firing. `marked`: ids to name;
    `retain_threshold`: a line at this rate of the second corpus. Raises InvalidArgument for ids that there are not.
    """
    _known(compared, marked)
    x, y = compared.second.rate, compared.first.rate
    floors = [0.5 / side.n_tokens for side in (compared.second, compared.first)]
    shown = (x > 0) | (y > 0)
    at = [np.maximum(values, floor) for values, floor in zip((x, y), floors, strict=True)]
    higher = y > x
    figure, axes = new(5.6, 5.0)
    low, high = min(floors) * 0.8, max(1e-3, float(max(x.max(), y.max()))) * 1.6
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for chosen, colour, name in ((higher, ORANGE, compared.names[0]), (~higher, BLUE, compared.names[1])):
        some = shown & chosen
        label = f"more on {name}: {int(some.sum()):,}"
        axes.scatter(
            at[0][some], at[1][some], s=9, color=colour, alpha=0.45, linewidths=0, label=plain(label), zorder=2
        )
    if retain_threshold is not None:
        axes.axvline(retain_threshold, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        note = {"xy": (retain_threshold, 0.99), "xycoords": ("data", "axes fraction")}
        axes.annotate(f" {retain_threshold:g}", **note, va="top", fontsize=8, color=GREY)
    for latent in marked:
        axes.annotate(str(latent), (at[0][latent], at[1][latent]), (4, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set_xlabel(f"share of tokens of {plain(compared.names[1])}")
    axes.set_ylabel(f"share of tokens of {plain(compared.names[0])}")
    axes.legend(loc="lower right", markerscale=1.8)
    silent = int((~shown).sum())
    title(axes, what, how or f"{int(shown.sum()):,} latents; {silent:,} fire on neither")
    return finished(figure, path)


@styled
def importance_histogram(
    compared: Comparison,
    *,
    by: Measure = "importance",
    bins: int = 40,
    what: str = "Importance of latents",
    how: str = "",
    path: str | Path | None = None,
) -> Figure:
    """How many latents have which importance, those apart that fire more on the first corpus and on the second.

    `by`: the measure, as of `Comparison.ranking`. Latents that fire on neither corpus are left out.
    Raises InvalidArgument for an unknown measure, or where nothing fires.
    """
    if by not in MEASURES:
        raise InvalidArgument(f"measure {by!r}; allowed: {', '.join(MEASURES)}")
    first, second = compared.first.rate, compared.second.rate
    fires = (first > 0) | (second > 0)
    if not fires.any():
        raise InvalidArgument("no latent fires on either corpus, so there is nothing to draw")
    scores = {
        "importance": compared.importance,
        "divergence": compared.divergence,
        "rate": compared.rate_divergence,
        "magnitude": compared.magnitude_divergence,
    }[by]
    edges = np.linspace(0, float(scores[fires].max()) or 1.0, bins + 1)
    figure, axes = new(6.4, 3.4)
    for chosen, colour, name in (
        (first > second, ORANGE, compared.names[0]),
        (first <= second, BLUE, compared.names[1]),
    ):
        own = scores[fires & chosen]
        label = plain(f"more on {name}: {len(own):,}")
        axes.hist(own, bins=edges, color=colour, alpha=0.5, label=label, zorder=2)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    _counts_axis(axes)
    axes.set(xlabel=f"KL({plain(compared.names[0])} ‖ {plain(compared.names[1])}), {by}, in nats", ylabel="latents")
    axes.grid(axis="y", zorder=0)
    axes.legend(loc="upper right")
    title(axes, what, how or "Laplace-smoothed; latents that fire on neither corpus are left out")
    return finished(figure, path)


def _counts_axis(axes: Any) -> None:
    """0, 1, 10, 100 … up to what is drawn."""
    top = cast("float", axes.get_ylim()[1])
    ticks = [0, *(10**power for power in range(9) if 10**power <= top * 1.001)]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()


def _known(compared: Comparison, marked: Sequence[int]) -> None:
    wrong = [latent for latent in marked if not 0 <= latent < compared.first.d_sae]
    if wrong:
        raise InvalidArgument(f"latents {wrong[:6]}; allowed: 0 … {compared.first.d_sae - 1}")
