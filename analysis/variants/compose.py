"""Several variants as one, with what that costs: task arithmetic, priorities, TIES, gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.hooks import Where
from ...protos.spec import Plan
from ...protos.tensors import Array
from ...protos.variants.delta import Delta
from ...protos.variants.manifest import Manifest
from ...protos.variants.plans import joined_plans
from ...protos.variants.variant import Variant
from .conflicts import Conflict, Float64, basis, conflicts, hook_conflicts
from .gates import gated
from .ties import ties

__all__ = ["Composed", "How", "compose", "projected"]

How = Literal["sum", "priority", "orthogonal", "ties", "gated"]
NOTHING = 1e-9
"""A delta whose norm falls to this part of what it was by projection is left out."""


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """The variant, and what composing did."""

    variant: Variant
    conflicts: tuple[Conflict, ...]
    hook_conflicts: tuple[str, ...]
    """Hooks of two variants that set the same thing."""
    norms: Mapping[str, tuple[float, float]]
    """Weight → Σᵢ‖Δᵢ‖_F before, ‖Δ‖_F after."""
    ranks: Mapping[str, tuple[int, int]]
    """Weight → sum of ranks before, rank after."""
    energy_lost: Mapping[str, float]
    """Weight → part of ‖Δ‖²_F that compression left out; empty without."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is worth saying."""
        return (*(one.warning for one in self.conflicts if one.warning), *self.hook_conflicts)


def compose(
    variants: Sequence[Variant],
    how: How = "sum",
    *,
    scales: Sequence[float] | None = None,
    gates: Sequence[Where] | None = None,
    max_rank: int | None = None,
    density: float = 0.2,
    moments: Mapping[str, Array] | None = None,
    strict: bool = False,
    name: str = "",
) -> Composed:
    """Several variants of one model as one.

    sum: Σ sᵢ·ΔWᵢ, exactly, as naming them together in a request (task arithmetic, Ilharco et al. 2022). priority: each later
    one is projected off what the earlier ones read and write, so that on their inputs it is silent. orthogonal: off what they
    write alone. ties: per entry the mean of those that agree with the sign of most mass, of each its `density` largest
    (Yadav et al. 2023); dense inside, then the least rank that keeps 99 %, or `max_rank`. gated: as hooks that each keep a
    `gates` of their own. `moments`: weight → E[x·xᵀ], for cosines under data. Raises InvalidArgument for variants that cannot be put
    together so, and with `strict` for hooks that set the same thing; FailedPrecondition for variants of two models.
    """
    if not variants:
        raise InvalidArgument("compose needs variants")
    if how not in ("sum", "priority", "orthogonal", "ties", "gated"):
        raise InvalidArgument(f"how is {how!r}; allowed: sum, priority, orthogonal, ties, gated")
    if (gates is not None) != (how == "gated"):
        raise InvalidArgument("how='gated' needs gates, a where= for each variant, and nothing else takes them")
    if scales is not None and len(scales) != len(variants):
        raise InvalidArgument(f"{len(scales)} scales for {len(variants)} variants; give one for each")
    clashes = hook_conflicts(variants)
    if strict and clashes:
        raise InvalidArgument(f"strict: {clashes[0]}")
    parts = [
        one if scales is None else one.scaled(scale)
        for one, scale in zip(variants, scales or [1.0] * len(variants), strict=True)
    ]
    base = reduce(lambda one, other: one + other, parts).manifest.base  # says so when they are of two models
    deltas, plan = _combined(parts, how, gates, density)
    lost: dict[str, float] = {}
    if max_rank is not None or how == "ties":
        deltas, lost = _compressed(deltas, max_rank)
    options = {"how": how, "max_rank": max_rank, "density": density if how == "ties" else None}
    parents = [
        {"hash": one.hash, "name": one.manifest.name, "scale": scale}
        for one, scale in zip(variants, scales or [1.0] * len(variants), strict=True)
    ]
    manifest = Manifest(name=name, base=base, method="compose", options=options, made_of=tuple(parents))
    made = Variant(deltas, plan, manifest)
    return Composed(made, conflicts(parts, moments), clashes, _norms(parts, made), _ranks(parts, made), lost)


def _combined(
    parts: Sequence[Variant], how: How, gates: Sequence[Where] | None, density: float
) -> tuple[dict[str, Delta], Plan]:
    plan = reduce(joined_plans, (one.plan for one in parts))
    if how == "gated":
        return {}, gated(parts, gates or ())
    weights = sorted({weight for one in parts for weight in one.deltas})
    at = {weight: [one.deltas[weight] for one in parts if weight in one.deltas] for weight in weights}
    if how == "ties":
        return {weight: ties(own, density) for weight, own in at.items()}, plan
    if how == "sum":
        return {weight: reduce(lambda one, other: one + other, own) for weight, own in at.items()}, plan
    return {weight: _in_order(own, inputs=how == "priority") for weight, own in at.items()}, plan


def _in_order(deltas: Sequence[Delta], *, inputs: bool) -> Delta:
    """The first as it is, each later one off the spaces of those before it."""
    total = deltas[0]
    for one in deltas[1:]:
        u = basis(total.b.T)
        v = basis(total.a) if inputs else np.zeros((one.d_in, 0))
        a, b, bias = projected(one, u, v)
        left = float(np.linalg.norm(a @ b))
        if left > NOTHING * one.norm() or (bias is not None and bias.any()):
            total = total + Delta(a, b, bias)
    return total


def projected(delta: Delta, u: Float64, v: Float64) -> tuple[Float64, Float64, Float64 | None]:
    """(I − V·Vᵀ)·A, B·(I − U·Uᵀ) and the bias likewise, in float64; U [d_out, k] and V [d_in, k] orthonormal."""
    a, b = delta.a.astype(np.float64), delta.b.astype(np.float64)
    bias = None if delta.bias is None else delta.bias.astype(np.float64)
    return a - v @ (v.T @ a), b - (b @ u) @ u.T, None if bias is None else bias - u @ (u.T @ bias)


def _compressed(deltas: Mapping[str, Delta], max_rank: int | None) -> tuple[dict[str, Delta], dict[str, float]]:
    """At most this rank each (None: the least that keeps 99 %), and what part of ‖Δ‖² that left out."""
    small: dict[str, Delta] = {}
    lost: dict[str, float] = {}
    for weight, delta in deltas.items():
        own = delta.compressed(energy=0.99) if max_rank is None else delta.compressed(rank=max_rank)
        total = delta.norm() ** 2
        small[weight] = own
        lost[weight] = max(0.0, 1 - own.norm() ** 2 / total) if total else 0.0
    return small, lost


def _norms(parts: Sequence[Variant], made: Variant) -> dict[str, tuple[float, float]]:
    weights = {weight for one in parts for weight in one.deltas}
    return {
        weight: (
            sum(one.deltas[weight].norm() for one in parts if weight in one.deltas),
            made.deltas[weight].norm() if weight in made.deltas else 0.0,
        )
        for weight in sorted(weights)
    }


def _ranks(parts: Sequence[Variant], made: Variant) -> dict[str, tuple[int, int]]:
    weights = {weight for one in parts for weight in one.deltas}
    return {
        weight: (
            sum(one.deltas[weight].rank for one in parts if weight in one.deltas),
            made.deltas[weight].rank if weight in made.deltas else 0,
        )
        for weight in sorted(weights)
    }
