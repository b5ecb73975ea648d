"""What a variant meets: circuits whose rows and columns it changes, and other variants at the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...clients import Client
from ...protos.model_info import ModelInfo
from ...protos.variants.delta import Delta
from ...protos.variants.variant import Variant
from ..circuits import Circuit
from ..circuits.weights import circuit_weights
from .base_weights import base_matrix, row_shares

__all__ = ["CircuitOverlap", "Conflict", "circuit_overlaps", "conflicts"]


@dataclass(frozen=True, slots=True)
class CircuitOverlap:
    """How much of a circuit a variant changes."""

    circuit: str
    share: float
    """Of the circuit's score mass: each row's or column's |score| times ‖ΔW row‖/‖W row‖, 1 at most."""
    weights: tuple[str, ...]
    """Where they meet."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two variants at one weight."""

    other: str
    weight: str
    cosine: float
    """⟨Δ₁, Δ₂⟩/(‖Δ₁‖‖Δ₂‖)."""
    inputs: float
    """Overlap of what both read: mean squared cosine of the principal angles, of the smaller space."""
    outputs: float
    """The same of what both write."""


def circuit_overlaps(
    client: Client, variant: Variant, circuits: Sequence[Circuit], *, model: str = ""
) -> list[CircuitOverlap]:
    """Of each circuit, in order. A weight whose matrix the model does not give counts whole where the variant is at it."""
    info = client.describe(model)
    return [_overlap(client, info, variant, circuit, model) for circuit in circuits]


def _overlap(client: Client, info: ModelInfo, variant: Variant, circuit: Circuit, model: str) -> CircuitOverlap:
    mask = circuit_weights(client, circuit, model=model)
    mass = touched = 0.0
    met: list[str] = []
    for name, part in mask.parts.items():
        scores = np.abs(np.array(part.scores or [1.0], dtype=np.float64))
        scores = scores if scores.any() else np.ones_like(scores)
        mass += float(scores.sum())
        if (delta := variant.deltas.get(name)) is None:
            continue
        matrix = base_matrix(client, info, name, model=model)
        shares = np.ones(1) if matrix is None else row_shares(delta, matrix, part.side, part.index)
        if shares.any():
            met.append(name)
        weighted = (
            scores * np.minimum(1.0, shares) if shares.shape == scores.shape else scores * min(1.0, shares.mean())
        )
        touched += float(weighted.sum())
    return CircuitOverlap(circuit.card.name or circuit.id[:12], touched / mass if mass else 0.0, tuple(met))


def conflicts(variant: Variant, others: Mapping[str, Variant]) -> list[Conflict]:
    """With each other variant, at each weight that both change; from the factors alone."""
    return [
        Conflict(other, name, *_meeting(variant.deltas[name], found.deltas[name]))
        for other, found in others.items()
        for name in variant.deltas
        if name in found.deltas
    ]


def _meeting(one: Delta, two: Delta) -> tuple[float, float, float]:
    a1, b1, a2, b2 = (array.astype(np.float64) for array in (one.a, one.b, two.a, two.b))

    def inner(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
        return float(((b @ d.T) * (a.T @ c)).sum())

    size = np.sqrt(inner(a1, b1, a1, b1) * inner(a2, b2, a2, b2))
    cosine = inner(a1, b1, a2, b2) / size if size else 0.0
    return cosine, _shared(a1, a2), _shared(b1.T, b2.T)


def _shared(one: np.ndarray, two: np.ndarray) -> float:
    bases = [_basis(matrix) for matrix in (one, two)]
    smaller = min(basis.shape[1] for basis in bases)
    return float((np.linalg.svd(bases[0].T @ bases[1], compute_uv=False) ** 2).sum() / smaller) if smaller else 0.0


def _basis(matrix: np.ndarray) -> np.ndarray:
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return left[:, values > (values[0] if len(values) else 0) * 1e-7]
