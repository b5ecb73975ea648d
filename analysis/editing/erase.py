"""Erasing a concept from a site's rows so that no linear predictor finds it: LEACE, and two baselines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...clients import Affine, Hook, ProjectOut, Tensor, hook
from ...protos.errors import InvalidArgument
from ..ablation.probes import fit_probe

__all__ = ["Eraser", "difference_projection", "inlp", "leace"]

Floats = NDArray[np.float64]
SMALL = 0.01
"""Singular values of the whitened cross-covariance below which a direction is noise (as concept-erasure has it)."""
ROWS_A_WIDTH = 10
"""Rows a coordinate below which the covariance is known too badly for the guarantee to carry over."""


@dataclass(frozen=True, slots=True, eq=False)
class Eraser:
    """x − L R (x − μ)."""

    left: Floats
    """L [width, r]."""
    right: Floats
    """R [r, width]."""
    mean: Floats
    """μ [width]."""
    method: str
    n: int
    """Rows it was fitted to."""
    centred: bool = True
    """Whether the erased part goes to its mean or to zero (orthogonal projections, whose L is Rᵀ)."""

    @property
    def rank(self) -> int:
        """Directions it takes out."""
        return len(self.right)

    def __call__(self, rows: ArrayLike) -> Floats:
        """Erased rows [row, width], float64."""
        given = np.asarray(rows, dtype=np.float64)
        return given - (given - self.mean) @ self.right.T @ self.left.T

    @property
    def edit(self) -> Affine | ProjectOut:
        """The same on a server: `affine`, or `project_out` where nothing is centred."""
        if not self.centred:
            return ProjectOut(_tensor(self.right))
        return Affine(_tensor(self.right.T), _tensor(-self.left.T), _tensor(-self.right @ self.mean))

    def hooks(self, at: str | Sequence[str], **where: Any) -> list[Hook]:
        """The edit at some sites, for example with `positions` of a role of a task."""
        return [hook(site, self.edit, **where) for site in ([at] if isinstance(at, str) else at)]

    def __str__(self) -> str:
        return f"{self.method} of rank {self.rank}, fitted to {self.n} rows of {len(self.mean)}"


def leace(rows: ArrayLike, concept: ArrayLike) -> Eraser:
    """Least-squares concept erasure (Belrose et al. 2023), in closed form: the smallest change after which Cov(x, z) = 0.

    rows [row, width]; concept [row] (a number or the index of a class), or [row, k] (numbers, or one-hot classes). With
    W = Σxx^(−1/2) (pseudo-inverse; eigenvalues below width·eps·λmax are none), U an orthonormal basis of the range of W Σxz
    (singular values below .01 of no account), R = UᵀW and L = W⁺U. No linear predictor of z then beats the constant one
    in any convex loss, on these rows: it warns of fewer than 10 a coordinate. Raises InvalidArgument where nothing is to erase.
    """
    X, Z = _checked(rows, concept)
    n, width = X.shape
    if n < ROWS_A_WIDTH * width:
        warnings.warn(
            f"LEACE was fitted to {n} rows of {width} coordinates; its guarantee is about these rows, and {ROWS_A_WIDTH * width} "
            "or more carry it to others",
            stacklevel=2,
        )
    mean = X.mean(axis=0)
    centred, labels = X - mean, Z - Z.mean(axis=0)
    covariance, cross = centred.T @ centred / n, centred.T @ labels / n
    values, vectors = np.linalg.eigh(covariance)
    kept = values > width * np.finfo(np.float64).eps * values[-1]
    basis, root = vectors[:, kept], np.sqrt(values[kept])
    whiten, colour = basis / root @ basis.T, basis * root @ basis.T
    span, strengths, _ = np.linalg.svd(whiten @ cross, full_matrices=False)
    U = span[:, strengths > SMALL]
    if not U.shape[1]:
        raise InvalidArgument(
            "the rows hold nothing of the concept that a linear predictor could read; nothing to erase"
        )
    return Eraser(colour @ U, U.T @ whiten, mean, "leace", n)


def inlp(rows: ArrayLike, concept: ArrayLike, n: int = 8) -> Eraser:
    """Iterated null-space projection (Ravfogel et al. 2020): `n` times, fit a logistic probe to what is left and project it out.

    concept [row]: 0 or 1. Raises InvalidArgument for other classes.
    """
    X, Z = _checked(rows, concept)
    marks = _binary(Z)
    left, found = X.copy(), list[Floats]()
    for _ in range(n):
        direction = fit_probe(left, marks).direction
        for one in found:
            direction = direction - one * (one @ direction)
        length = float(np.linalg.norm(direction))
        if length < 1e-10:
            break
        found.append(direction / length)
        left = left - np.outer(left @ found[-1], found[-1])
    right = np.stack(found)
    return Eraser(right.T.copy(), right, _origin(X), f"inlp, {len(found)} rounds", len(X), centred=False)


def difference_projection(rows: ArrayLike, concept: ArrayLike) -> Eraser:
    """Project out the difference of the two classes' means, through the origin. concept [row]: 0 or 1."""
    X, Z = _checked(rows, concept)
    marks = _binary(Z)
    direction = X[marks == 1].mean(axis=0) - X[marks == 0].mean(axis=0)
    length = float(np.linalg.norm(direction))
    if not length:
        raise InvalidArgument("the classes have one mean; there is no difference to project out")
    right = (direction / length)[None]
    return Eraser(right.T.copy(), right, _origin(X), "difference of means", len(X), centred=False)


def _checked(rows: ArrayLike, concept: ArrayLike) -> tuple[Floats, Floats]:
    """X [row, width] and Z [row, k]: integer classes become one-hot."""
    X, given = np.asarray(rows, dtype=np.float64), np.asarray(concept)
    if X.ndim != 2 or given.ndim not in (1, 2) or len(given) != len(X) or len(X) < 2:
        raise InvalidArgument(
            f"rows are [row, width] and the concept [row] or [row, k]; got {list(X.shape)} and {list(given.shape)}"
        )
    classes = np.unique(given) if given.ndim == 1 and given.dtype.kind in "iub" else None
    Z = (
        given.reshape(len(X), -1).astype(np.float64)
        if classes is None
        else (given[:, None] == classes).astype(np.float64)
    )
    if not (np.isfinite(X).all() and np.isfinite(Z).all()):
        raise InvalidArgument("rows or concept hold NaN or infinity")
    if (Z[0] == Z).all():
        raise InvalidArgument("the concept is the same in every row; give rows with and without it")
    return X, Z


def _origin(X: Floats) -> Floats:
    width = int(X.shape[1])
    return np.zeros(width, dtype=np.float64)


def _binary(Z: Floats) -> NDArray[np.int64]:
    if Z.shape[1] > 2 or not np.isin(Z, (0.0, 1.0)).all():
        raise InvalidArgument("this method takes two classes, 0 and 1")
    return Z[:, -1].astype(np.int64)


def _tensor(array: Floats) -> Tensor:
    return Tensor.of(np.ascontiguousarray(array, dtype=np.float32))
