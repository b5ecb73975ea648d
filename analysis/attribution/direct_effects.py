"""Direct effects: what neurons and embeddings tell given targets along paths that cross no MLP in between.

RelP_{s→t} = a_s · ∂a_t/∂a_s with the gradient blocked at the input of every MLP but the target's own. With all four rules
and no biases, the effects of every earlier neuron and embedding sum to the target's value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Captures, Client, Gather, Hook, Input, hook
from ...clients.progress import progress_bar
from ...protos.errors import InvalidArgument
from ...protos.metrics import Coordinate, Metric, Target
from ...protos.model import MAX_INPUTS
from ...protos.sites import Site
from ...protos.spec import Capture
from .relp import GRAPH_RULES

__all__ = ["DirectEffects", "Neuron", "direct_effects"]

Floats = NDArray[np.float64]
Neuron = tuple[int, int, int]
"""(layer, position, unit of mlp_act)"""
OUTPUT = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class DirectEffects:
    """Direct effects on some targets."""

    values: Floats
    """[target]: the targets' own values."""
    embeddings: Floats
    """[target, position]: of each token's embedding."""
    neurons: Floats
    """[target, source], in the order in which the sources were given; 0 for sources that come no earlier."""
    rest: Floats
    """[target]: of all neurons that are not among the sources; NaN unless `complete` was asked for."""


def direct_effects(
    client: Client,
    token_ids: Sequence[int],
    targets: Sequence[Metric],
    sources: Sequence[Neuron],
    *,
    rules: Sequence[str] = GRAPH_RULES,
    complete: bool = False,
    batch: int = MAX_INPUTS,
    progress: bool = True,
    model: str = "",
) -> DirectEffects:
    """Effects on each target (a neuron as a `Coordinate` at mlp_act, or any metric of the logits), `batch` a request.

    `complete` reads the gradient at every neuron, not at the sources alone: many more bytes, but `rest` then says what
    the sources leave out. Raises InvalidArgument for no targets.
    """
    if not targets:
        raise InvalidArgument("no targets; give at least one metric or coordinate")
    if not 1 <= batch <= MAX_INPUTS:
        raise InvalidArgument(f"batch must be in 1 … {MAX_INPUTS} (one input a target), got {batch}")
    ids = tuple(token_ids)
    run = client.run(Input(token_ids=ids), capture=["embed", "mlp_act.*"], model=model)
    embed = np.asarray(run["embed"], dtype=np.float64)
    active = {layer: np.asarray(run[f"mlp_act.{layer}"], dtype=np.float64) for layer in run.captures.layers("mlp_act")}
    out = DirectEffects(
        np.zeros(len(targets)),
        np.zeros((len(targets), len(ids))),
        np.zeros((len(targets), len(sources))),
        np.full(len(targets), 0.0 if complete else np.nan),
    )
    order = sorted(range(len(targets)), key=lambda index: _layer(targets[index]))  # a batch reads no later layer
    with progress_bar("direct effects", "tokens", show=progress) as bar:
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            names = {index: f"target {index}" for index in some}
            last = max(_layer(targets[index]) for index in some)
            before = [layer for layer in active if layer < last]
            result = client.gradients(
                [Input(token_ids=ids, name=name) for name in names.values()],
                [Target(targets[index], (name,)) for index, name in names.items()],
                at=_reads(sources, before, complete),
                rules=tuple(rules),
                direct=True,
                model=model,
            )
            for index, name in names.items():
                found = result.inputs[name]
                out.values[index] = float(found.metric)
                out.embeddings[index] = (embed * found.gradients["embed"]).sum(axis=-1)
                _take(out, index, found.gradients, sources, active, min(_layer(targets[index]), last), complete)
            bar(start + len(some), len(order))
    return out


def _layer(target: Metric) -> int:
    """Sources of a target lie in layers before this one."""
    if isinstance(target, Coordinate):
        layer = Site.parse(target.site).layer
        return OUTPUT if layer is None else layer
    return OUTPUT


def _by_layer(sources: Iterable[Neuron]) -> dict[int, tuple[list[int], list[int]]]:
    """Layer → positions and units, sorted, whose product holds all sources of the layer."""
    found: dict[int, tuple[set[int], set[int]]] = {}
    for layer, position, unit in sources:
        positions, units = found.setdefault(layer, (set(), set()))
        positions.add(position)
        units.add(unit)
    return {layer: (sorted(positions), sorted(units)) for layer, (positions, units) in found.items()}


def _reads(sources: Sequence[Neuron], before: Sequence[int], complete: bool) -> list[Hook]:
    reads = [hook("embed", None, Capture(gradient=True))]
    if complete:
        return reads + [hook(f"mlp_act.{layer}", None, Capture(gradient=True)) for layer in before]
    for layer, (positions, units) in _by_layer(sources).items():
        if layer in before:
            only = Capture(gradient=True, reduce=Gather(tuple(units)))
            reads.append(hook(f"mlp_act.{layer}", None, only, positions=positions))
    return reads


def _take(
    out: DirectEffects,
    index: int,
    gradients: Captures,
    sources: Sequence[Neuron],
    active: Mapping[int, Floats],
    layer: int,
    complete: bool,
) -> None:
    """Fill one target's row."""
    if complete:
        effects = {one: active[one] * gradients[f"mlp_act.{one}"] for one in active if one < layer}
        for column, (one, position, unit) in enumerate(sources):
            if one < layer:
                out.neurons[index, column] = effects[one][position, unit]
        out.rest[index] = sum(float(found.sum()) for found in effects.values()) - out.neurons[index].sum()
        return
    places = {one: [{v: i for i, v in enumerate(axis)} for axis in axes] for one, axes in _by_layer(sources).items()}
    rows = {one: np.asarray(gradients[f"mlp_act.{one}"], dtype=np.float64) for one in places if one < layer}
    for column, (one, position, unit) in enumerate(sources):
        if one < layer:
            at, which = places[one]
            out.neurons[index, column] = active[one][position, unit] * rows[one][at[position], which[unit]]
