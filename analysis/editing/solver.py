"""The one problem behind ROME, MEMIT, AlphaEdit and transfer: a change of a matrix that maps keys to wanted changes.

Everything in float64. Δ [d_out, d_in] is kept as factors, y ← y + (x·a)·b, and its rank is at most the number of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument

__all__ = ["MAX_CONDITION", "Mode", "Solved", "likeness", "solve_delta"]

Floats = NDArray[np.float64]
Mode = Literal["exact", "ridge", "null_space"]

MAX_CONDITION = 1e10
"""Of the keys' Gram matrix, keys of unit length: past it a difference of two keys is rounding."""
_SPAN = 1e-9
"""Singular values below this share of the largest are no direction of a span."""


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """A change of a matrix as factors, and what its solution says of it."""

    a: Floats
    """[d_in, r], r at most the number of keys."""
    b: Floats
    """[r, d_out]: the wanted changes."""
    condition: float
    """Of the keys' Gram matrix; 1 for a single key."""
    free_dimensions: int
    """Of the input space, how many the change may use: d_in less what is preserved or left out."""
    left_energy: float = 1.0
    """null_space: the share of the second moment's trace that lies in the dimensions it may use; else 1."""

    @property
    def dense(self) -> Floats:
        """Δ, [d_out, d_in]."""
        return (self.a @ self.b).T

    @property
    def norm(self) -> float:
        """Frobenius norm of Δ, from the factors."""
        return float(np.sqrt(max(float(np.sum((self.a.T @ self.a) * (self.b @ self.b.T))), 0.0)))


def solve_delta(
    keys: Any,
    wanted: Any,
    *,
    moment: Any = None,
    preserve: Any = None,
    mode: Mode = "exact",
    ridge: float = 0.1,
    lam: float | None = None,
    weight: float = 1.0,
    tau: float = 0.6,
) -> Solved:
    """The change Δ of a matrix for which Δ·keys is what is wanted, and inputs of other kinds change little.

    `keys` [d_in, u]; `wanted` [d_out, u]; `moment` C [d_in, d_in], the uncentred second moment of inputs; `preserve`
    [d_in, p], inputs whose output stays. With W the matrix as it is:

    - exact: least tr(Δ G Δᵀ), G = d·C/tr(C) + ridge·I (I without C), subject to Δ·keys = wanted and Δ·preserve = 0. One key
      and nothing preserved: ROME (Meng et al. 2022, "Locating and Editing Factual Associations").
    - ridge: Δ = R Kᵀ (λC + weight·Kp Kpᵀ/p + K Kᵀ)⁻¹: MEMIT (Meng et al. 2023). `lam`: λ, d_in/100 by default. Without C,
      the unit matrix times the keys' mean square.
    - null_space: Δ = R (PK)ᵀ (P K Kᵀ P + εI)⁻¹, P the projector onto eigenvectors of C below tau·tr(C)/d and off the
      preserved keys: AlphaEdit (Fang et al. 2025). `lam`: ε, by default 1e-3 of the mean square of PK.

    Raises InvalidArgument for shapes that do not go together, numbers that are not finite, and keys so alike that no
    change of the matrix can tell them apart (condition number over 1e10).
    """
    if mode not in get_args(Mode):
        raise InvalidArgument(f"mode {mode!r}; allowed: {', '.join(get_args(Mode))}")
    k, r = _matrix(keys, "keys"), _matrix(wanted, "wanted")
    if k.shape[1] != r.shape[1]:
        raise InvalidArgument(f"{k.shape[1]} keys and {r.shape[1]} wanted changes; each key needs one")
    c = _moment(moment, len(k))
    kept = _preserved(preserve, len(k))
    if not k.any(axis=0).all():
        raise InvalidArgument(
            f"key {int(np.flatnonzero(~k.any(axis=0))[0])} is zero: no change of the matrix acts on it"
        )
    for name, value in (("ridge", ridge), ("weight", weight), ("tau", tau), ("lam", 0.0 if lam is None else lam)):
        if not np.isfinite(value) or value < 0:
            raise InvalidArgument(f"{name} must be a finite number of 0 or more, got {value!r}")
    if mode == "exact":
        return _exact(k, r, c, kept, ridge)
    if mode == "ridge":
        return _ridge(k, r, c, kept, len(k) / 100 if lam is None else lam, weight)
    return _null_space(k, r, c, kept, lam, tau)


def likeness(keys: Any, others: Any, *, moment: Any = None, ridge: float = 0.1) -> float:
    """Mean over `others` [d_in, p] of the largest cosine with a key, in the metric kᵀG⁻¹k′ that the least change goes by.

    A change leaks to other inputs as far as they are alike in it; a moment whose text holds the others makes them less so.
    """
    k, other = _matrix(keys, "keys"), _matrix(others, "others")
    c = _moment(moment, len(k))
    g = None if c is None else c * (len(k) / np.trace(c)) + ridge * np.eye(len(k))
    one, two = (found if g is None else _solve(g, found) for found in (k, other))
    sizes = np.sqrt(np.outer((k * one).sum(axis=0), (other * two).sum(axis=0)))
    return float(((k.T @ two) / np.maximum(sizes, 1e-300)).max(axis=0).mean())


def _exact(k: Floats, r: Floats, c: Floats | None, kept: Floats | None, ridge: float) -> Solved:
    length = np.linalg.norm(k, axis=0)
    basis = np.zeros((len(k), 0)) if kept is None else span(kept)
    whole = np.concatenate([k / length, basis], axis=1)
    if whole.shape[1] > len(k):
        raise InvalidArgument(
            f"{k.shape[1]} keys to change and {basis.shape[1]} directions to preserve do not fit into {len(k)} inputs; "
            "preserve fewer, or use mode='ridge'"
        )
    weighed = whole if c is None else _solve(c * (len(k) / np.trace(c)) + ridge * np.eye(len(k)), whole)
    gram = whole.T @ weighed
    condition = _require_told_apart(gram, k, basis)
    a = weighed @ np.linalg.solve(gram, np.eye(len(gram))[:, : k.shape[1]]) / length
    return Solved(a, r.T.copy(), condition, len(k) - basis.shape[1])


def _ridge(k: Floats, r: Floats, c: Floats | None, kept: Floats | None, lam: float, weight: float) -> Solved:
    base = np.eye(len(k)) * float(np.mean(k**2)) if c is None else c
    gram = lam * base + k @ k.T
    if kept is not None:
        gram += weight * (kept @ kept.T) / kept.shape[1]
    unit = k / np.linalg.norm(k, axis=0)
    return Solved(_solve(gram, k), r.T.copy(), float(np.linalg.cond(unit.T @ unit)), len(k))


def _null_space(k: Floats, r: Floats, c: Floats | None, kept: Floats | None, lam: float | None, tau: float) -> Solved:
    if c is None:
        raise InvalidArgument("mode='null_space' needs a second moment: its small eigenvectors are what may change")
    values: Floats
    vectors: Floats
    values, vectors = np.linalg.eigh(c)
    small = values < tau * np.trace(c) / len(k)
    free = vectors[:, small]
    if not free.shape[1]:
        raise InvalidArgument(f"no eigenvalue of the moment is below tau·tr(C)/d at tau {tau:g}; give a larger tau")
    energy = float(values[small].sum() / np.trace(c))
    if kept is not None:
        held = span(free.T @ kept)
        free = free @ _complement(held)
    inside: Floats = free.T @ k
    square = _mean_square(inside)
    if square <= 1e-18 * _mean_square(k):
        raise InvalidArgument(
            f"nothing of the keys lies in the {free.shape[1]} dimensions that tau {tau:g} leaves free"
        )
    gram: Floats = inside.T @ inside
    gram += (1e-3 * square if lam is None else lam) * np.eye(len(gram))
    condition = _require_told_apart(gram, k, np.zeros((len(k), 0)))
    return Solved(free @ inside @ np.linalg.inv(gram), r.T.copy(), condition, free.shape[1], energy)


def _mean_square(columns: Floats) -> float:
    """Mean squared length of a column."""
    return float(np.linalg.norm(columns) ** 2) / columns.shape[1]


def span(columns: Floats) -> Floats:
    """[d, n]: an orthonormal basis of what the columns [d, p] span."""
    length = np.linalg.norm(columns, axis=0)
    kept = columns[:, length > 0] / length[length > 0]
    if not kept.shape[1]:
        return np.zeros((len(columns), 0))
    left, values, _ = np.linalg.svd(kept, full_matrices=False)
    return left[:, values > _SPAN * values[0]]


def _complement(basis: Floats) -> Floats:
    """An orthonormal basis of what is orthogonal to an orthonormal basis [d, n]: [d, d − n]."""
    return np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :]


def _solve(matrix: Floats, right: Floats) -> Floats:
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise InvalidArgument(
            "the second moment is not positive definite (fewer tokens than inputs, or units that never fire): take more "
            "tokens, or mode='exact' with a ridge above 0"
        ) from None
    found: Any = np.linalg.solve(matrix, right)
    return found


def _require_told_apart(gram: Floats, keys: Floats, basis: Floats) -> float:
    condition = float(np.linalg.cond(gram)) if len(gram) > 1 else 1.0
    if condition <= MAX_CONDITION:
        return condition
    unit = keys / np.linalg.norm(keys, axis=0)
    alike = np.abs(unit.T @ unit) - 2 * np.eye(unit.shape[1])
    inside = np.linalg.norm(basis.T @ unit, axis=0)
    if inside.size and inside.max() > alike.max():
        which, how = f"key {int(inside.argmax())}", "lies in what is preserved"
    else:
        one, other = (int(i) for i in np.unravel_index(int(alike.argmax()), alike.shape))
        which, how = f"keys {one} and {other}", f"are the same (cosine {float(unit[:, one] @ unit[:, other]):.9f})"
    raise InvalidArgument(
        f"the keys cannot be told apart (condition number {condition:.1e}, allowed {MAX_CONDITION:.0e}): {which} {how}; leave "
        "one out, or edit at another layer, or use mode='ridge'"
    )


def _matrix(value: Any, what: str) -> Floats:
    found = np.array(value, dtype=np.float64)
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or 0 in found.shape:
        raise InvalidArgument(f"{what} must be [width, n], a column each, none of them empty; got {list(found.shape)}")
    if not np.isfinite(found).all():
        raise InvalidArgument(f"{what} holds NaN or infinity")
    return found


def _moment(value: Any, width: int) -> Floats | None:
    if value is None:
        return None
    found = _matrix(value, "moment")
    if found.shape != (width, width) or not np.allclose(found, found.T, rtol=0, atol=1e-8 * float(np.abs(found).max())):
        raise InvalidArgument(f"moment must be symmetric, [{width}, {width}] as the keys are; got {list(found.shape)}")
    if np.trace(found) <= 0:
        raise InvalidArgument("moment has no trace: it is a second moment of nothing")
    return found


def _preserved(value: Any, width: int) -> Floats | None:
    if value is None or np.size(value) == 0:
        return None
    found = _matrix(value, "preserve")
    if len(found) != width:
        raise InvalidArgument(f"preserve has keys of {len(found)} inputs, and the keys to change have {width}")
    return found if found.any() else None
