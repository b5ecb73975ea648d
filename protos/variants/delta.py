"""A low-rank change of one weight matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument
from ..numbers import finite
from ..tensors import Array, narrowed

__all__ = ["Delta"]

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Delta:
    """y ← y + (x·A)·B + bias at a linear module with input x and output y.

    Arrays are copied to float32 and made read-only; anything array-like of finite numbers is taken. Its rank is that
    of the factors, r; the product's own may be less. Raises InvalidArgument for shapes that do not fit, NaN, infinity, and
    numbers beyond float32.
    """

    a: Array
    """[d_in, r], float32."""
    b: Array
    """[r, d_out], float32."""
    bias: Array | None = None
    """[d_out], float32; zeros are none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", _array(self.a, "a", 2))
        object.__setattr__(self, "b", _array(self.b, "b", 2))
        if self.a.shape[1] != self.b.shape[0]:
            raise InvalidArgument(
                f"delta: a is {list(self.a.shape)} and b is {list(self.b.shape)}; a is [d_in, r] and b is [r, d_out] with one r"
            )
        if self.bias is not None:
            bias = _array(self.bias, "bias", 1)
            if bias.shape != (self.d_out,):
                raise InvalidArgument(f"delta: the bias has {bias.shape[0]} numbers and b {self.d_out} columns")
            object.__setattr__(self, "bias", bias if bias.any() else None)

    @property
    def d_in(self) -> int:
        """Width of the module's input."""
        return self.a.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the module's output."""
        return self.b.shape[1]

    @property
    def rank(self) -> int:
        """Inner width of the factors."""
        return self.a.shape[1]

    @property
    def n_bytes(self) -> int:
        """Of the arrays, in float32."""
        return self.a.nbytes + self.b.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def scaled(self, factor: float) -> Delta:
        """factor·Δ."""
        factor = finite(factor, "the scale of a delta")
        with np.errstate(over="ignore"):  # the new value says that it is beyond float32
            return Delta(
                self.a, self.b * np.float64(factor), None if self.bias is None else self.bias * np.float64(factor)
            )

    def __add__(self, other: Delta) -> Delta:
        """The sum, exactly: ranks are put side by side. Raises InvalidArgument for other widths."""
        if (self.d_in, self.d_out) != (other.d_in, other.d_out):
            raise InvalidArgument(
                f"deltas of {self.d_in} × {self.d_out} and of {other.d_in} × {other.d_out} are not of one weight"
            )
        biases = [one.bias for one in (self, other) if one.bias is not None]
        bias = sum(biases[1:], start=biases[0].astype(np.float64)) if biases else None
        return Delta(np.concatenate([self.a, other.a], axis=1), np.concatenate([self.b, other.b]), bias)

    def dense(self) -> Float32:
        """A·B, [d_in, d_out], multiplied in float64. A module that keeps its weight as [d_out, d_in] adds the transpose."""
        return (self.a.astype(np.float64) @ self.b.astype(np.float64)).astype(np.float32)

    def singular_values(self) -> NDArray[np.float64]:
        """Of A·B, largest first, min(r, d_in, d_out) of them; from the factors alone."""
        return self._svd()[1]

    def norm(self) -> float:
        """‖A·B‖_F, from the factors alone. The bias is not in it."""
        return float(np.linalg.norm(self.singular_values()))

    def compressed(self, *, rank: int | None = None, energy: float | None = None) -> Delta:
        """The best approximation of at most this rank, or of the least rank that keeps so much of ‖A·B‖²_F.

        By singular values (Eckart and Young), in float64. Raises InvalidArgument unless exactly one of both is given.
        """
        u, s, vt = self._svd()
        keep = _kept(s, rank, energy)
        root = np.sqrt(s[:keep])
        return Delta(u[:, :keep] * root, root[:, None] * vt[:keep], self.bias)

    def _svd(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """U [d_in, k], S [k], Vᵀ [k, d_out] of A·B, through the small matrix between the factors' own bases."""
        qa, ra = np.linalg.qr(self.a.astype(np.float64))
        qb, rb = np.linalg.qr(self.b.astype(np.float64).T)
        u, s, vt = np.linalg.svd(ra @ rb.T, full_matrices=False)
        return qa @ u, s, vt @ qb.T

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Delta):
            return NotImplemented
        return _same(self.a, other.a) and _same(self.b, other.b) and _same(self.bias, other.bias)

    def __hash__(self) -> int:
        return hash((self.a.tobytes(), self.b.tobytes()))

    def __repr__(self) -> str:
        bias = "" if self.bias is None else ", with a bias"
        return f"Delta({self.d_in} → {self.d_out}, rank {self.rank}{bias})"


def _kept(s: NDArray[np.float64], rank: int | None, energy: float | None) -> int:
    """How many singular values stay; one at least."""
    if (rank is None) == (energy is None):
        raise InvalidArgument("give exactly one of rank and energy")
    if rank is not None:
        if isinstance(rank, bool) or not hasattr(rank, "__index__") or rank < 1:
            raise InvalidArgument(f"rank must be an integer of 1 or more, got {rank!r}")
        return min(int(rank), len(s))
    if energy is None or not 0 < energy <= 1:
        raise InvalidArgument(f"energy must be above 0 and at most 1, the part of ‖Δ‖² that is kept; got {energy!r}")
    kept = np.cumsum(s**2)
    if not kept[-1]:
        return 1
    nonzero = int((s > s[0] * np.finfo(np.float64).eps * len(s)).sum())
    return min(int((kept < energy * kept[-1] * (1 - 1e-15)).sum()) + 1, max(nonzero, 1))


def _same(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _array(value: Any, what: str, ndim: int) -> Float32:
    """A read-only float32 copy, C-ordered."""
    try:
        array: Array = np.array(value)
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise InvalidArgument(f"delta.{what} has dtype {array.dtype}; give numbers")
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"delta.{what} is no array of numbers: {error}") from None
    if array.ndim != ndim or 0 in array.shape:
        raise InvalidArgument(f"delta.{what} has shape {list(array.shape)}; it needs {ndim} axes, none of them empty")
    held: Float32 = np.array(narrowed(array, "float32", "scale the delta down"), dtype=np.float32, order="C", copy=True)
    if not np.isfinite(held).all():
        raise InvalidArgument(f"delta.{what} holds {int((~np.isfinite(held)).sum())} values that are NaN or infinite")
    held.flags.writeable = False
    return held
