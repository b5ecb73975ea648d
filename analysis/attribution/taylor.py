"""First-order estimates of patching: how much a value would change, times the gradient of the metric there.

One core for attribution patching, its integrated variant and RelP, which differ in the backward pass alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, NamedArray
from ...clients.results.results import Gradients
from ...protos.errors import InvalidArgument
from ...protos.gradients import IntegratedPath
from ...protos.model import ModelInfo
from ...protos.sites import HEAD_SITES, Site
from .grid import Grid
from .pairs import Direction, Pair, Side, check_direction

__all__ = ["Attribution", "Backward", "check_gradients", "paired_scores", "patterns", "score_rows"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """An estimate, for each cell, of how the metric changes when it alone is patched."""

    per_pair: NamedArray
    """[pair, site?, layer?, position?, head? or unit?], in the metric's unit."""
    direction: Direction
    method: str
    base: NamedArray
    """[pair]: the metric of the prompts that ran, unpatched."""
    tokens: tuple[str, ...]
    """Of the first pair's prompt that ran, for labels."""

    @property
    def effect(self) -> NamedArray:
        """Mean over pairs: comparable with `Patching.effect` of the same direction."""
        return self.per_pair.mean("pair")

    @property
    def importance(self) -> NamedArray:
        """The effect with the sign that says how much a cell helps the clean answer: what circuits are ranked by."""
        effect = self.effect
        return effect if self.direction == "denoise" else NamedArray(-effect.values, effect.axes)


@dataclass(frozen=True, slots=True)
class Backward:
    """How gradients are taken."""

    rules: tuple[str, ...] = ()
    steps: int = 0
    """Points of the straight line from the other prompt's value at `site` over which gradients are averaged; 0: none."""
    site: str = "embed"


def paired_scores(
    client: Client,
    pairs: Sequence[Pair],
    grid: Grid,
    direction: Direction,
    backward: Backward,
    *,
    units: bool = False,
    method: str,
    model: str = "",
) -> Attribution:
    """(other − own) · ∂m/∂own at every cell of a grid; with `units`, of each unit of the last axis.

    Values of the other side come from one run, gradients and own values from one gradients call (one a pair with steps).
    """
    base, other = check_direction(direction)
    check_gradients(client.describe(model), grid.sites)
    read = patterns(grid.sites)
    sides = (base, other) if backward.steps else (other,)  # a path's forwards are not the prompt's own
    run = client.run([pair.input(side) for pair in pairs for side in sides], capture=read, model=model)
    scores: list[Floats] = []
    base_metric: list[float] = []
    for some in [list(pairs)] if not backward.steps else [[pair] for pair in pairs]:
        found = _gradients(client, some, base, other, backward, read, model)
        for pair in some:
            own, there = found.inputs[pair.name(base)], run.inputs[pair.name(other)].captures
            here = run.inputs[pair.name(base)].captures if backward.steps else own.captures
            base_metric += [] if backward.steps else [float(own.metric)]
            rows = ((np.asarray(there[s], dtype=np.float64) - here[s]) * own.gradients[s] for s in grid.sites)
            scores.append(score_rows(rows, grid, units=units))
    if backward.steps:
        base_metric = _measured(client, pairs, base, model)
    labels = {"pair": [pair.index for pair in pairs]}
    axes = {**labels, **grid.axes, **({"unit": list(range(scores[0].shape[-1]))} if units else {})}
    return Attribution(
        NamedArray(np.stack(scores), axes),
        direction,
        method,
        NamedArray(np.array(base_metric), labels),
        pairs[0].tokens(base),
    )


def score_rows(products: Iterable[NDArray[Any]], grid: Grid, *, units: bool) -> Floats:
    """Sum value × gradient, [every position, …] a site, down to the axes of the grid (and the last axis with `units`)."""
    rows: list[Floats] = []
    for site, product in zip(grid.sites, products, strict=True):
        found = np.asarray(product, dtype=np.float64)
        if found.ndim == 3 and Site.parse(site).name not in HEAD_SITES:
            raise InvalidArgument(f"{site} has rows of more than one axis; score it by heads")
        if found.ndim == 3 and grid.heads is None:
            found = found.sum(axis=1) if not units else found.reshape(len(found), -1)
        elif grid.heads is not None:
            found = found[:, list(grid.heads)]
        if not units:
            found = found.sum(axis=-1)
        rows.append(found.sum(axis=0) if grid.positions is None else found[list(grid.positions)])
    stacked = np.stack(rows)
    return stacked.reshape(*grid.shape, *stacked.shape[-1:]) if units else stacked.reshape(grid.shape)


def check_gradients(info: ModelInfo, sites: Iterable[str]) -> None:
    """Raise InvalidArgument where a site offers no gradients."""
    for name in dict.fromkeys(Site.parse(site).name for site in sites):
        found = info.site(name)
        if found is not None and not found.gradients:
            allowed = ", ".join(site.name for site in info.sites if site.gradients) or "none"
            why = f" ({found.note})" if found.note else ""
            raise InvalidArgument(f"{name} offers no gradients on {info.backend}{why}; sites that do: {allowed}")


def patterns(sites: Sequence[str]) -> tuple[str, ...]:
    """The same sites, layers that follow one another written as one: a plan holds a limited number of hooks."""
    parsed = [Site.parse(site) for site in sites]
    whole = [str(site) for site in parsed if site.layer is None]
    found: list[str] = []
    for name in dict.fromkeys(site.name for site in parsed if site.layer is not None):
        layers = sorted({site.layer for site in parsed if site.name == name and site.layer is not None})
        for _, run in groupby(enumerate(layers), key=lambda item: item[1] - item[0]):
            several = [layer for _, layer in run]
            found.append(f"{name}.{several[0]}:{several[-1] + 1}" if len(several) > 1 else f"{name}.{several[0]}")
    return (*whole, *found)


def _gradients(
    client: Client,
    pairs: Sequence[Pair],
    base: Side,
    other: Side,
    backward: Backward,
    read: Sequence[str],
    model: str,
) -> Gradients:
    inputs = [item for pair in pairs for item in (pair.input(base), *pair.baselines)]
    inputs += [pair.input(other, source_only=True) for pair in pairs if backward.steps]
    path = IntegratedPath(pairs[0].name(other), backward.steps, backward.site) if backward.steps else None
    targets = [pair.target(base) for pair in pairs]
    capture = () if path is not None else read
    return client.gradients(inputs, targets, at=read, capture=capture, rules=backward.rules, path=path, model=model)


def _measured(client: Client, pairs: Sequence[Pair], base: Side, model: str) -> list[float]:
    """The metric of each prompt as it is, which a path does not pass."""
    inputs = [item for pair in pairs for item in (pair.input(base), *pair.baselines)]
    sweep = client.sweep(inputs, [pair.target(base) for pair in pairs], [[]], progress=False, model=model)
    return [float(sweep.array(pair.name(base)).values[0]) for pair in pairs]
