"""Activation patching: put one value of another prompt into a run, and measure what comes of it.

Sources: Vig et al. 2020, Meng et al. 2022 (ROME), Heimersheim and Nanda 2024 for the two directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...clients import Client, Hook, NamedArray, patch as patch_hook
from ...clients.hooks import Options
from ...clients.prompts import Prompts
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from .grid import Cell, Heads, Layers, Positions, make_grid
from .pairs import Direction, Pair, Side, check_direction, make_pairs, same_length

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
    share: bool = True,
    progress: bool = True,
    model: str = "",
) -> Patching:
    """Patch every cell of sites × positions × heads on its own, in one sweep.

    `clean`, `corrupt`: a prompt or a list each, pairing token by token; several are averaged. `sites`: kinds
    ("resid_pre": every layer, or `layers`), patterns or single sites. `positions` None: each on its own; "all": all together.
    `heads` None: whole rows; "all": each on its own (q, k, v, z, attn_*). `direction` "denoise": the corrupt prompt
    runs and clean values are put in; "noise": the other way. Raises InvalidArgument for prompts that do not pair.
    """
    base, other = check_direction(direction)
    pairs = make_pairs(client, clean, corrupt, metric, model=model)
    explicit = positions is not None
    n_tokens = min(map(len, pairs)) if explicit else same_length(pairs, "a grid over every position")
    grid = make_grid(client.describe(model), sites, n_tokens, positions, heads, layers)
    whole = Cell("embed", None, None)  # all embeddings of the other side: its own forward, in the same sweep
    plans: list[list[Hook]] = [[]]
    plans += [[_hook(cell, pair, base, other) for pair in pairs] for cell in (whole, *grid.cells)]
    inputs = [pair.input(base) for pair in pairs]
    inputs += [item for pair in pairs for item in (pair.input(other, source_only=True), *pair.baselines)]
    targets = [pair.target(base) for pair in pairs]
    sweep = client.sweep(inputs, targets, plans, share=share, progress=progress, model=model)
    found = np.stack([np.asarray(sweep.array(pair.name(base)).values) for pair in pairs])  # [pair, plan]
    labels = {"pair": list(range(len(pairs)))}
    unpatched = {base: NamedArray(found[:, 0], labels), other: NamedArray(found[:, 1], labels)}
    per_pair = NamedArray(found[:, 2:].reshape(len(pairs), *grid.shape), {**labels, **grid.axes})
    return Patching(per_pair, unpatched["clean"], unpatched["corrupt"], direction, pairs[0].tokens(base))


def _hook(cell: Cell, pair: Pair, base: Side, other: Side) -> Hook:
    """Put the other side's value of one cell into the side that runs."""
    options: Options = {"inputs": pair.name(base)}
    if cell.position is not None:
        options["positions"] = cell.position
    heads = None if cell.head is None else (cell.head,)
    return patch_hook(cell.site, from_input=pair.name(other), heads=heads, **options)
