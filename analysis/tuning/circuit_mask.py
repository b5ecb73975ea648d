"""A circuit as rows and columns of weights: what tuning may change, and what it leaves to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from ..circuits.circuit import Circuit
from ..circuits.weights import Sizes, WeightPart, weights_owned
from .base import Base

__all__ = ["anywhere", "circuit_parts", "outside_of", "random_circuit", "width_in", "width_out"]


def circuit_parts(base: Base, circuit: Circuit) -> dict[str, WeightPart]:
    """Weight name → its part, as `circuit_weights` says of a served model; keys and values that several heads read are left out.

    Raises InvalidArgument for units that own no weights (of resid_post, q, …), or none of this model.
    """

    def of(site: str, layer: int | None) -> tuple[int, int]:
        del layer
        return (base.n_kv_heads if site in ("k", "v") else base.n_heads, base.d_head)

    parts = weights_owned(circuit, Sizes(frozenset(base.paths), base.n_heads, base.n_kv_heads, of)).parts
    for name, part in parts.items():
        top = width_in(base, name) if part.side == "columns" else width_out(base, name)
        if part.index and part.index[-1] >= top:
            raise InvalidArgument(
                f"the circuit has unit {part.index[-1]} of {name}, which has {top}; is it of another model?"
            )
    return {name: parts[name] for name in base.paths if name in parts}


def anywhere(base: Base, circuit: Circuit) -> dict[str, WeightPart]:
    """Weight name → an empty part, of every weight that a circuit over the same space could own some of."""
    space = circuit.space
    at = np.flatnonzero(np.diff(space.site_of, prepend=-1))
    units = tuple(space.unit_at(int(index)) for index in at)
    parts = circuit_parts(base, Circuit(space, units, (0.0,) * len(units)))
    return {name: replace(part, index=(), scores=(), units=()) for name, part in parts.items()}


def random_circuit(circuit: Circuit, seed: int) -> Circuit:
    """A control: as many units in each site, drawn from those that the circuit has not (from all, where too few are left)."""
    rng = np.random.default_rng([seed, 7])
    taken = {circuit.space.index_of(unit) for unit in circuit.units}
    at: dict[tuple[str, int | None], list[int]] = {}
    for index in range(circuit.space.size):
        unit = circuit.space.unit_at(index)
        at.setdefault((unit.site, unit.position), []).append(index)
    drawn: list[int] = []
    for members in at.values():
        free = [index for index in members if index not in taken]
        n = len(members) - len(free)
        drawn += rng.choice(free if len(free) >= n else members, size=n, replace=False).tolist()
    units = tuple(circuit.space.unit_at(index) for index in sorted(drawn))
    return Circuit(circuit.space, units, (0.0,) * len(units))


def outside_of(base: Base, circuit: Circuit) -> dict[str, NDArray[np.bool_]]:
    """Site of the circuit's kinds, at every layer → which coordinates lie outside it: [d_mlp] or [n_heads·d_head].

    A circuit of whole sites has the neurons and heads of the blocks that it has not.
    """
    kinds = {Site.parse(unit.site).name for unit in circuit.units}
    inside: dict[str, set[int] | None] = {}
    for unit in circuit.units:
        site = Site.parse(unit.site)
        key = f"{'mlp_act' if site.name in ('mlp_act', 'mlp_out') else 'z'}.{site.layer}"
        if site.name in ("mlp_out", "attn_out") and unit.unit is not None:
            continue  # a coordinate of what is written: no neuron and no head is its own
        if unit.unit is None and unit.head is None:
            inside[key] = None
        elif (have := inside.setdefault(key, set())) is not None:
            have.update([unit.unit] if unit.unit is not None else _of_head(base, unit.head or 0))
    found: dict[str, NDArray[np.bool_]] = {}
    for layer in range(base.n_layers):
        for name, weight, of in (("mlp_act", "w_down", {"mlp_act", "mlp_out"}), ("z", "w_o", {"z", "attn_out"})):
            if not kinds & of or f"{weight}.{layer}" not in base.paths:
                continue
            outside = np.ones(width_in(base, f"{weight}.{layer}"), dtype=bool)
            have = inside.get(f"{name}.{layer}", set())
            outside[slice(None) if have is None else sorted(have)] = False
            found[f"{name}.{layer}"] = outside
    return found


def _of_head(base: Base, head: int) -> range:
    """Coordinates of z, flattened."""
    return range(head * base.d_head, (head + 1) * base.d_head)


def width_in(base: Base, weight: str) -> int:
    """d_in of a weight."""
    module = base.module(weight)
    module = getattr(module, "base_layer", module)
    return int(getattr(module, "in_features", 0) or module.weight.shape[0])


def width_out(base: Base, weight: str) -> int:
    """d_out of a weight."""
    module = base.module(weight)
    module = getattr(module, "base_layer", module)
    return int(getattr(module, "out_features", 0) or module.weight.shape[1])
