"""The few array operations that the executor needs of a backend; everything else is operators they all share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..protos.tensors import Array

__all__ = ["Ops"]

T = Any
"""A backend's own tensor."""
Index = NDArray[np.int64]


class Ops(Protocol):
    """Implemented by backends/torch/ops.py and backends/mlx/ops.py."""

    @property
    def here(self) -> Hashable:
        """The device that arrays are made on: always the same where a model has but one."""
        ...

    def near(self, x: T) -> None:
        """Make arrays on x's device from now on: layers may lie on several."""
        ...

    def beside(self, x: T, reference: T) -> T:
        """x on another tensor's device."""
        ...

    def lasting(self) -> AbstractContextManager[Any]:
        """Arrays made inside outlast the forward that may be under way, and take part in others."""
        ...

    def device(self, array: Array) -> T:
        """A float32 tensor `here`; float64 stays what it is."""
        ...

    def index(self, array: Index) -> T:
        """Row or unit numbers as an index tensor."""
        ...

    def exact(self, array: Array) -> T:
        """A tensor of the array's own dtype `here`; it may share the array's memory."""
        ...

    def int32(self, x: T) -> T:
        """Cast to 32-bit integers."""
        ...

    def pad_last(self, x: T, n: int, value: float) -> T:
        """The last axis longer by n entries of one value."""
        ...

    def mark_last(self, x: T, index: T) -> T:
        """In x's shape and dtype: 1 at x[i, index[i, j]], else 0."""
        ...

    def take_last(self, x: T, index: T) -> T:
        """x[i, index[i, j]]."""
        ...

    def f32(self, x: T) -> T:
        """Cast to float32."""
        ...

    def like(self, x: T, reference: T) -> T:
        """Cast to another tensor's dtype, on its device."""
        ...

    def cast(self, x: T, dtype: str) -> T:
        """Cast to a dtype by its wire name."""
        ...

    def lost(self, x: T, cast: T) -> T:
        """[row], bool: whether a cast turned any finite number of a row into an infinite one."""
        ...

    def take(self, x: T, index: T, axis: int) -> T:
        """Pick along an axis."""
        ...

    def put(self, x: T, index: T, axis: int, values: T) -> T:
        """A copy of x with the picked entries replaced."""
        ...

    def where(self, mask: T, a: T, b: T) -> T:
        """Elementwise choice."""
        ...

    def clip(self, x: T, low: float | None, high: float | None) -> T:
        """Bound from either side."""
        ...

    def norm(self, x: T) -> T:
        """L2 norm over the last axis, which is kept."""
        ...

    def sum0(self, x: T) -> T:
        """Sum over the first axis."""
        ...

    def stop(self, x: T) -> T:
        """The same values, which pass no gradient on."""
        ...

    def sigmoid(self, x: T) -> T:
        """Elementwise."""
        ...

    def tanh(self, x: T) -> T:
        """Elementwise."""
        ...

    def erf(self, x: T) -> T:
        """Elementwise."""
        ...

    def rsqrt(self, x: T) -> T:
        """Elementwise."""
        ...

    def zeros_like(self, x: T) -> T:
        """Zeros."""
        ...

    def transpose_last(self, x: T) -> T:
        """Swap the last two axes."""
        ...

    def weight(self, array: Array) -> Any:
        """A matrix [in, out] that stays as it is, laid out for `linear`: a product with few rows reads all of it."""
        ...

    def linear(self, x: T, weight: Any) -> T:
        """x [row, in] and what `weight` gave → [row, out]."""
        ...

    def top_k(self, x: T, k: int) -> tuple[T, T]:
        """The k largest of the last axis, descending, and their indices."""
        ...

    def wide(self, x: T) -> T:
        """Cast to the widest float of the device: float64, but for GPUs that have none."""
        ...

    def exp(self, x: T) -> T:
        """Elementwise, to the digits of x's dtype."""
        ...

    def exp_less(self, x: T) -> T:
        """e^x − 1 − x of small numbers, elementwise: not below 0."""
        ...

    def max_last(self, x: T) -> T:
        """The largest over the last axis, which is kept."""
        ...

    def sum_last(self, x: T) -> T:
        """Over the last axis, with an error that does not grow with its length."""
        ...

    def gather_last(self, x: T, index: T) -> T:
        """x[i, index[i]]."""
        ...

    def copy(self, x: T) -> T:
        """A tensor that later in-place writes to x cannot reach."""
        ...

    def join(self, tensors: Sequence[T]) -> T:
        """Tensors one after the other along their first axis."""
        ...

    def stack(self, tensors: Sequence[T]) -> T:
        """Tensors of one shape and dtype along a new first axis."""
        ...

    def to_host(self, tensors: Sequence[T]) -> list[Array]:
        """Many tensors to numpy, in one copy a device and dtype."""
        ...
