"""A circuit as rows and columns of weights: what tuning may change, and what it leaves to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from ..circuits.circuit import Circuit
from .base import Base

__all__ = ["WeightPart", "circuit_parts", "outside_of", "random_circuit"]

Side = Literal["rows", "columns"]
OF_NEURONS: Mapping[str, Side] = {"w_gate": "rows", "w_up": "rows", "w_down": "columns"}
OF_HEADS: Mapping[str, Side] = {"w_q": "rows", "w_o": "columns"}
"""Rows of w_k and w_v belong to several query heads where these are grouped, so a head does not own them."""
OF_SITES = {"mlp_out": ("w_gate", "w_up", "w_down"), "attn_out": ("w_q", "w_k", "w_v", "w_o")}


@dataclass(frozen=True, slots=True)
class WeightPart:
    """Rows (of outputs) or columns (of inputs) of W [d_out, d_in]; None: all of it."""

    side: Side
    index: tuple[int, ...] | None

    def mask(self, size: int) -> NDArray[np.bool_]:
        """[size]: which of them."""
        found = np.zeros(size, dtype=bool)
        found[slice(None) if self.index is None else list(self.index)] = True
        return found


def circuit_parts(base: Base, circuit: Circuit) -> dict[str, WeightPart]:
    """Weight name → its part. Positions are dropped, as weights have none; w_k and w_v are left out for heads.

    Raises InvalidArgument for units that own no weights (of resid_post, q, …).
    """
    chosen: dict[str, set[int] | None] = {}
    for unit in circuit.units:
        site = Site.parse(unit.site)
        if site.name == "mlp_act" and unit.unit is not None:
            names, index = OF_NEURONS, {unit.unit}
        elif site.name == "z" and unit.head is not None:
            names, index = OF_HEADS, set(_of_head(base, unit.head))
        elif site.name in OF_SITES and unit.unit is None:
            names, index = OF_SITES[site.name], None
        else:
            raise InvalidArgument(
                f"{unit.name} owns no rows or columns of weights; a circuit to tune has units of mlp_act, heads of z, or "
                "whole attn_out and mlp_out"
            )
        for name in names:
            weight = f"{name}.{site.layer}"
            if weight in base.paths:
                before = chosen.get(weight, set())
                chosen[weight] = None if index is None or before is None else before | index
    if not chosen:
        raise InvalidArgument("no unit of the circuit is in this model; was it found on another one?")
    sides: dict[str, Side] = {**dict.fromkeys(("w_k", "w_v"), "rows"), **OF_NEURONS, **OF_HEADS}
    parts = {
        weight: WeightPart(sides[weight.split(".")[0]], None if index is None else tuple(sorted(index)))
        for weight, index in chosen.items()
    }
    return {weight: parts[weight] for weight in base.paths if weight in parts}


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
