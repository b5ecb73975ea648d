"""The base's own matrices, by a variant's names for them: what a change is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...protos.errors import Unsupported
from ...protos.model_info import ModelInfo
from ...protos.variants.delta import Delta
from ..variants.weight_numbers import weight_numbers

__all__ = ["Size", "base_matrix", "largest_singular", "size_of"]

Floats = NDArray[np.float64]
_ROUNDS = 30
"""Of the power iteration."""

Size = dict[str, float | int | None]


def base_matrix(client: Client, info: ModelInfo, name: str, *, model: str = "") -> Floats | None:
    """W [d_in, d_out] of a weight; None where it is only a part of a module's matrix, or the model does not say where it is."""
    found = [weight for weight in info.weights if weight.name == name]
    if len(found) != 1 or sum(weight.path == found[0].path for weight in info.weights) != 1:
        return None
    try:
        return weight_numbers(client, info, name, model=model).matrix.astype(np.float64)
    except Unsupported:
        return None


def size_of(delta: Delta, matrix: Floats | None) -> Size:
    """Rank, ‖ΔW‖_F, its largest singular value, and both over W's where that is known."""
    left, right = np.linalg.qr(delta.a.astype(np.float64)), np.linalg.qr(delta.b.T.astype(np.float64))
    values = np.linalg.svd(left.R @ right.R.T, compute_uv=False)
    norm, top = float(np.sqrt((values**2).sum())), float(values[0]) if len(values) else 0.0
    rank = int((values > values[0] * 1e-7).sum()) if len(values) and values[0] > 0 else 0
    found: Size = {"rank": rank, "norm": norm, "singular": top, "relative_norm": None, "relative_singular": None}
    if matrix is not None:
        found["relative_norm"] = norm / float(np.linalg.norm(matrix))
        found["relative_singular"] = top / largest_singular(matrix)
    return found


def largest_singular(matrix: Floats, *, seed: int = 0) -> float:
    """By power iteration."""
    rng = np.random.default_rng(seed)
    vector = np.array([rng.standard_normal() for _ in range(matrix.shape[1])])
    for _ in range(_ROUNDS):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / np.linalg.norm(vector)
    return float(np.linalg.norm(matrix @ vector))


def row_shares(delta: Delta, matrix: Floats, side: str, index: Sequence[int]) -> Floats:
    """‖ΔW row‖/‖W row‖ of outputs ("rows"), inputs ("columns"); of all of it one number."""
    dense = delta.a.astype(np.float64) @ delta.b.astype(np.float64)
    if side == "all":
        return np.array([float(np.linalg.norm(dense) / np.linalg.norm(matrix))])
    axis = 0 if side == "rows" else 1  # W here is [d_in, d_out]
    squares: list[Any] = [(array**2).sum(axis=axis) for array in (dense, matrix)]
    chosen = list(index) if index else slice(None)
    return np.sqrt(squares[0][chosen] / np.maximum(squares[1][chosen], 1e-60))
