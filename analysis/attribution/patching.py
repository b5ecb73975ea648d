"""Activation patching: put one value of another prompt into a run, and measure what comes of it.

Sources: Vig et al. 2020, Meng et al. 2022 (ROME), Heimersheim and Nanda 2024 for the two directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Hook, NamedArray, patch as patch_hook
from ...clients.requests.hooks import Options
from ...clients.requests.prompts import Prompts
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from .grid import Cell, Heads, Layers, Positions, make_grid
from .pairs import Direction, Pair, Side, check_direction, make_pairs, same_length
from .places import Align, Places, make_places, may_differ

__all__ = ["Patching", "patch"]


@dataclass(frozen=True, slots=True, eq=False)
class Patching:
    """What the metric becomes when each cell of a grid is patched."""

    per_pair: NamedArray
    """The metric of each patched run: [pair, site?, layer?, position?, head?]."""
    clean: NamedArray
    """[pair]: of the clean prompts as they are."""
    corrupt: NamedArray
    """[pair]"""
    direction: Direction
    tokens: tuple[str, ...]
    """Of the first pair's prompt that ran, for labels."""

    @property
    def metric(self) -> NamedArray:
        """Mean over pairs, in the metric's unit."""
        return self.per_pair.mean("pair")

    @property
    def per_pair_effect(self) -> NamedArray:
        """Patched − unpatched of each pair: [pair, site?, layer?, position?, head?]."""
        base = (self.corrupt if self.direction == "denoise" else self.clean).values
        own = base.reshape(-1, *[1] * (self.per_pair.values.ndim - 1))
        return NamedArray(self.per_pair.values - own, self.per_pair.axes)

    @property
    def effect(self) -> NamedArray:
        """Mean over pairs of patched − unpatched: what attribution methods estimate."""
        return self.per_pair_effect.mean("pair")

    @property
    def normalised(self) -> NamedArray:
        """(m − m_corrupt) / (m_clean − m_corrupt), of means over pairs: 1 is the clean answer, 0 the corrupt one.

        Raises InvalidArgument where the metric does not tell the prompts apart.
        """
        metric, low, high = self.metric, float(np.mean(self.corrupt.values)), float(np.mean(self.clean.values))
        if abs(high - low) <= 1e-6 * max(abs(high), abs(low)):
            raise InvalidArgument(
                f"the metric is {high:g} on the clean and on the corrupt prompts, so there is no scale to normalise by; "
                "use effect, or another metric"
            )
        return NamedArray((metric.values - low) / (high - low), metric.axes)


def patch(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    sites: str | Sequence[str],
    metric: Metric | Sequence[Metric],
    *,
    layers: Layers = None,
    positions: Positions = None,
    heads: Heads = None,
    direction: Direction = "denoise",
    align: Align = None,
    share: bool = True,
    progress: bool = True,
    model: str = "",
) -> Patching:
    """Patch every cell of sites × positions × heads on its own, in one sweep.

    `clean`, `corrupt`: a prompt or a list each, pairing token by token; several are averaged. `sites`: kinds
    ("resid_pre": every layer, or `layers`), patterns or single sites. `positions` None: each on its own; "all": all
    together. `heads` None: whole rows; "all": each on its own (q, k, v, z, attn_*). `direction` "denoise": the corrupt
    prompt runs and clean values are put in; "noise": the other way.

    Prompts of unequal length: `align` says which position of the one that runs pairs with which of the other, "tokens"
    (the longest run of equal ones), "end", "start", or roles, {"subject": (" Mary", " John Smith"), "end": (-1, -1)} (a text
    stands for its last token; positions are then the roles). Or `positions` that all count from the end.
    Raises InvalidArgument for prompts that do not pair.
    """
    base, other = check_direction(direction)
    equal = not may_differ(align, positions)
    pairs = make_pairs(client, clean, corrupt, metric, equal=equal, model=model)
    info = client.describe(model)
    if align is not None or any(len(pair.clean) != len(pair.corrupt) for pair in pairs):
        places = make_places(pairs, base, other, align, positions)
        listed = "all" if places.labels is None else range(len(places.labels))
        grid = make_grid(info, sites, len(listed), listed, heads, layers)
        if places.labels is not None:
            grid.axes["position"] = list(places.labels)
    else:
        places = None
        n_tokens = min(map(len, pairs)) if positions is not None else same_length(pairs, "a grid over every position")
        grid = make_grid(info, sites, n_tokens, positions, heads, layers)
    plans: list[list[Hook]] = [[], *([_hook(cell, pair, base, other, places) for pair in pairs] for cell in grid.cells)]
    inputs = [pair.input(base) for pair in pairs]
    inputs += [item for pair in pairs for item in (pair.input(other, source_only=True), *pair.baselines)]
    targets = [pair.target(base) for pair in pairs]
    sweep = client.sweep(inputs, targets, plans, share=share, progress=progress, model=model)
    found = np.stack([np.asarray(sweep.array(pair.name(base)).values) for pair in pairs])  # [pair, plan]
    labels = {"pair": list(range(len(pairs)))}
    unpatched = {
        base: NamedArray(found[:, 0], labels),
        other: NamedArray(_measured(client, pairs, other, model), labels),
    }
    per_pair = NamedArray(found[:, 1:].reshape(len(pairs), *grid.shape), {**labels, **grid.axes})
    return Patching(per_pair, unpatched["clean"], unpatched["corrupt"], direction, pairs[0].tokens(base))


def _measured(client: Client, pairs: Sequence[Pair], side: Side, model: str) -> NDArray[np.float64]:
    """[pair]: the metric of one side as it is."""
    inputs = [item for pair in pairs for item in (pair.input(side), *pair.baselines)]
    found = client.sweep(inputs, [pair.target(side) for pair in pairs], [[]], progress=False, model=model)
    return np.array([found.array(pair.name(side)).item() for pair in pairs])


def _hook(cell: Cell, pair: Pair, base: Side, other: Side, places: Places | None) -> Hook:
    """Put the other side's value of one cell into the side that runs."""
    options: Options = {"inputs": pair.name(base)}
    source: list[int] | None = None
    if places is not None:
        chosen = places.at(pair, cell.position)
        options["positions"], source = [own for own, _ in chosen], [theirs for _, theirs in chosen]
    elif cell.position is not None:
        options["positions"] = cell.position
    heads = None if cell.head is None else (cell.head,)
    return patch_hook(cell.site, from_input=pair.name(other), source_positions=source, heads=heads, **options)
