"""TIES merging (Yadav et al. 2023): trim, elect signs, mean over those that agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.variants.delta import Delta
from .conflicts import Float64

__all__ = ["dense_ties", "ties"]


def ties(deltas: Sequence[Delta], density: float) -> Delta:
    """The merged delta, at full rank; biases are merged likewise. Raises InvalidArgument for a density outside (0, 1]."""
    if not 0 < density <= 1:
        raise InvalidArgument(
            f"density must be above 0 and at most 1, the part of entries that is kept; got {density!r}"
        )
    dense = dense_ties([delta.a.astype(np.float64) @ delta.b.astype(np.float64) for delta in deltas], density)
    biases = [np.zeros(delta.d_out) if delta.bias is None else delta.bias.astype(np.float64) for delta in deltas]
    bias = dense_ties(biases, density)
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    rank = max(1, int((s > s[0] * np.finfo(np.float32).eps).sum()) if s[0] else 1)
    root = np.sqrt(s[:rank])
    return Delta(u[:, :rank] * root, root[:, None] * vt[:rank], bias)


def dense_ties(arrays: Sequence[Float64], density: float) -> Float64:
    """Of each array its `density` largest entries; per entry the sign of the sum; the mean of those that have it."""
    stacked = np.stack([_trimmed(array, density) for array in arrays])
    agreeing = np.where(np.sign(stacked) == np.sign(stacked.sum(axis=0)), stacked, 0.0)
    count = (agreeing != 0).sum(axis=0)
    return np.divide(agreeing.sum(axis=0), count, out=np.zeros_like(agreeing[0]), where=count > 0)


def _trimmed(array: Float64, density: float) -> Float64:
    keep = max(1, round(density * array.size))
    if keep >= array.size:
        return array
    least = np.partition(np.abs(array).ravel(), array.size - keep)[array.size - keep]
    return np.where(np.abs(array) >= least, array, 0.0)
