"""Whether variants get into each other's way, from their factors alone: no matrix is multiplied out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ...protos.edits import Clamp, Replace
from ...protos.errors import InvalidArgument
from ...protos.hooks import Hook
from ...protos.tensors import Array
from ...protos.variants.delta import Delta
from ...protos.variants.variant import Variant

__all__ = ["Conflict", "basis", "conflicts", "diff", "hook_conflicts", "inner", "overlap"]

Float64 = NDArray[np.float64]
MAX_OVERLAP, MIN_COSINE = 0.3, -0.3
"""Beyond these a pair is worth a warning."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two variants' deltas at one weight. All figures are without unit, in [−1, 1] or [0, 1]."""

    weight: str
    first: str
    second: str
    cosine: float
    """⟨Δ₁, Δ₂⟩ / (‖Δ₁‖·‖Δ₂‖): −1 undoes, 1 says the same."""
    cosine_data: float | None
    """The same of what they write on inputs with the second moments C = E[x·xᵀ]; None without moments."""
    inputs: float
    """Mean squared cosine of the principal angles between what they read: 0 apart, 1 the same space."""
    outputs: float
    """The same of what they write."""

    @property
    def warning(self) -> str:
        """What is worth saying; empty for nothing."""
        told = self.cosine if self.cosine_data is None else self.cosine_data
        if told < MIN_COSINE:
            return f"at {self.weight}, {self.first} and {self.second} undo each other (cosine {told:+.2f})"
        if self.cosine_data is not None and min(self.inputs, self.outputs) > MAX_OVERLAP and abs(told) > MAX_OVERLAP:
            return f"at {self.weight}, {self.first} and {self.second} act on the same inputs and outputs (cosine {told:+.2f})"
        return ""


def conflicts(variants: Sequence[Variant], moments: Mapping[str, Array] | None = None) -> tuple[Conflict, ...]:
    """Each pair at each weight that both change. `moments`: weight → C = E[x·xᵀ] of its inputs, [d_in, d_in]."""
    found: list[Conflict] = []
    names = told_names(variants)
    for (i, one), (j, other) in combinations(enumerate(variants), 2):
        for weight in sorted(one.deltas.keys() & other.deltas.keys()):
            c = None if moments is None or weight not in moments else np.asarray(moments[weight], np.float64)
            found.append(_conflict(weight, names[i], names[j], one.deltas[weight], other.deltas[weight], c))
    return tuple(found)


def diff(one: Variant, other: Variant, moments: Mapping[str, Array] | None = None) -> tuple[Conflict, ...]:
    """How two variants compare at the weights that both change."""
    return conflicts((one, other), moments)


def hook_conflicts(variants: Sequence[Variant]) -> tuple[str, ...]:
    """Hooks of two variants that set the same part of a site (replace, clamp): the later one wins."""
    told: list[str] = []
    names = told_names(variants)
    for (i, one), (j, other) in combinations(enumerate(variants), 2):
        for mine in one.plan.hooks:
            told += [
                f"{names[i]} and {names[j]} both set {mine.site}: the latter has the last word"
                for its in other.plan.hooks
                if _both_set(mine, its)
            ]
    return tuple(dict.fromkeys(told))


def inner(one: Delta, other: Delta, c: Float64 | None = None) -> float:
    """⟨Δ₁, Δ₂⟩ = Σ (A₁ᵀ·C·A₂) ∘ (B₁·B₂ᵀ), C the identity where none is given."""
    if (one.d_in, one.d_out) != (other.d_in, other.d_out):
        raise InvalidArgument(
            f"deltas of {one.d_in} × {one.d_out} and {other.d_in} × {other.d_out} are not of one weight"
        )
    a1, b1, a2, b2 = (x.astype(np.float64) for x in (one.a, one.b, other.a, other.b))
    return float(((a1.T @ (a2 if c is None else c @ a2)) * (b1 @ b2.T)).sum())


def basis(columns: Array) -> Float64:
    """An orthonormal basis of the space that columns span, [width, rank]."""
    u, s, _ = np.linalg.svd(np.asarray(columns, np.float64), full_matrices=False)
    return u[:, s > (s[0] if len(s) else 0) * np.finfo(np.float32).eps * max(columns.shape)] if len(s) else u


def overlap(one: Array, other: Array) -> float:
    """Mean squared cosine of the principal angles between the spaces of two matrices' columns; 0 where one is nothing."""
    u, v = basis(one), basis(other)
    n = min(u.shape[1], v.shape[1])
    return float(np.square(u.T @ v).sum() / n) if n else 0.0


def told_names(variants: Sequence[Variant]) -> tuple[str, ...]:
    """What each is called in a report."""
    return tuple(variant.manifest.name or f"variant {index + 1}" for index, variant in enumerate(variants))


def _conflict(weight: str, first: str, second: str, one: Delta, other: Delta, c: Float64 | None) -> Conflict:
    return Conflict(
        weight=weight,
        first=first,
        second=second,
        cosine=_cosine(one, other, None),
        cosine_data=None if c is None else _cosine(one, other, c),
        inputs=overlap(one.a, other.a),
        outputs=overlap(one.b.T, other.b.T),
    )


def _cosine(one: Delta, other: Delta, c: Float64 | None) -> float:
    norms = inner(one, one, c) * inner(other, other, c)
    return inner(one, other, c) / float(np.sqrt(norms)) if norms > 0 else 0.0


def _both_set(one: Hook, other: Hook) -> bool:
    """Whether two hooks set the same part of a site that is named the same way."""
    first, second = one.edit, other.edit
    if one.site != other.site or not isinstance(first, (Replace, Clamp)) or not isinstance(second, (Replace, Clamp)):
        return False
    parts = ((first.units, second.units), (first.heads, second.heads))
    return all(mine is None or its is None or bool(set(mine) & set(its)) for mine, its in parts)
