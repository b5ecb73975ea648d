"""Entanglement drawn: units by domain, and what each domain loses without a unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...protos.errors import InvalidArgument
from ..plots.heat_map import heat_map
from ..plots.style import GREY, PALETTE, Figure, finished, new, styled, title
from .entanglement import Entanglement

__all__ = ["causal_figure", "entanglement_figure"]

UNITS = 30
NEEDED = 2.0
"""Deviations above matched neurons from which a unit has a part in a domain."""


def entanglement_figure(found: Entanglement, path: str | Path | None = None) -> Figure:
    """Share of rows at which each entangled unit fires, unit by domain; those that stand without words first."""
    kept = found.entangled_without_words
    units = [*kept, *(unit for unit in found.entangled if unit not in set(kept))] or list(found.broad)
    units = units[:UNITS]
    if not units:
        raise InvalidArgument("no unit fires in several domains, so there is nothing to draw")
    return heat_map(
        found.profile.rates[units],
        found.names,
        layers=units,
        what=f"{len(kept)} of {len(found.word_share)} units are about something else in two domains",
        how=f"{found.site}: the first {len(units)} of {len(found.entangled)} entangled units; above 0.05 a unit fires more than in all domains together",
        label="share of rows where it fires",
        y_label="unit",
        path=path,
    )


@styled
def causal_figure(found: Entanglement, path: str | Path | None = None) -> Figure:
    """Deviations by which each domain's loss rises without a unit, beside matched neurons; raises InvalidArgument unchecked."""
    if not found.losses:
        raise InvalidArgument("no unit was ablated; causal_check(client, found, rows) does that")
    figure, axes = new(6.8, max(2.6, 1.6 + 0.32 * len(found.losses)))
    axes.axvspan(-NEEDED, NEEDED, color=GREY, alpha=0.15, linewidth=0)
    places = np.arange(len(found.losses))[::-1]
    for index, name in enumerate(found.names):
        values = [losses[name] for losses in found.losses.values()]
        axes.plot(values, places, "o", color=PALETTE[index % len(PALETTE)], label=name, zorder=3)
    axes.set_yticks(places, [f"#{unit}" for unit in found.losses])
    axes.set(xlabel="rise of the loss without the unit, deviations above matched neurons", ylim=(-0.6, places[0] + 0.6))
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.legend(ncols=len(found.names))
    shared = sum(sum(z >= NEEDED for z in losses.values()) >= 2 for losses in found.losses.values())
    title(
        axes,
        f"{shared} of {len(found.losses)} units have a part in two domains",
        f"{found.site}; within the band is chance",
    )
    return finished(figure, path)
