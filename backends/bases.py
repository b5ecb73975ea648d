"""Orthonormal bases of directions, in float32. Every backend and the reference use these very numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..protos.errors import InvalidArgument

__all__ = ["gram_schmidt", "span_basis"]

_RANK_TOLERANCE = 1e-6
"""Singular values (or remainders) below this share of the largest count as zero."""


def span_basis(directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """An orthonormal basis [rank, width] of the span of [n, width] (or [width]) directions."""
    _, values, rows = np.linalg.svd(np.atleast_2d(directions).astype(np.float32), full_matrices=False)
    return np.ascontiguousarray(rows[values > _RANK_TOLERANCE * values[0]])


def gram_schmidt(directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal directions [n, width] in the order given. Raises InvalidArgument when they are dependent."""
    matrix = np.atleast_2d(directions).astype(np.float32)
    n, width = matrix.shape
    if n > width:
        raise InvalidArgument(f"clamp.directions are {n} in a space of {width}; send at most {width}")
    q, r = np.linalg.qr(matrix.T)
    diagonal = np.diag(r)
    if (np.abs(diagonal) <= _RANK_TOLERANCE * np.linalg.norm(matrix.astype(np.float64), axis=1)).any():
        raise InvalidArgument("clamp.directions are linearly dependent; send independent directions")
    return np.ascontiguousarray((q * np.sign(diagonal)).T.astype(np.float32))
