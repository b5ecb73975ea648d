"""The executor's array operations in MLX. Everything stays lazy until `to_host`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ...protos.tensors import Array, numpy_dtype

__all__ = ["MlxOps", "dtype_name", "mlx_dtype", "to_numpy"]

_DTYPES = {"float64": mx.float64, "float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def mlx_dtype(name: str) -> mx.Dtype:
    """An MLX dtype by its wire name."""
    return _DTYPES[name]


def dtype_name(dtype: mx.Dtype) -> str:
    """The wire name of a floating MLX dtype."""
    return _NAMES[dtype]


def _has_float64() -> bool:
    return mx.default_device().type == mx.cpu  # GPUs have none


def to_numpy(arrays: Sequence[mx.array]) -> list[Array]:
    """Arrays as numpy, all computed at once; bfloat16 through ml_dtypes. Copies, so that no batch is kept alive."""
    raw = [x.view(mx.uint16) if x.dtype == mx.bfloat16 else x for x in arrays]
    mx.eval(raw)
    bfloat16 = numpy_dtype("bfloat16")
    return [
        np.array(bits).view(bfloat16) if x.dtype == mx.bfloat16 else np.array(bits)
        for x, bits in zip(arrays, raw, strict=True)
    ]


class MlxOps:
    """See backends/ops.py for each method."""

    @property
    def here(self) -> str:
        return ""  # a process of MLX has one

    def near(self, x: mx.array) -> None:
        del x

    def beside(self, x: mx.array, reference: mx.array) -> mx.array:
        del reference
        return x

    def lasting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def device(self, array: Array) -> mx.array:
        double = array.dtype == np.float64 and _has_float64()
        return mx.array(np.array(array, dtype=np.float64 if double else np.float32), mx.float64 if double else None)

    def index(self, array: NDArray[np.int64]) -> mx.array:
        return mx.array(np.array(array, dtype=np.int64))

    def exact(self, array: Array) -> mx.array:
        name = str(array.dtype)
        whole = mx.array(array.view(np.uint16)).view(mx.bfloat16) if name == "bfloat16" else mx.array(np.array(array))
        return mx.array(np.array(array), mx.float64) if name == "float64" else whole

    def int32(self, x: mx.array) -> mx.array:
        return x.astype(mx.int32)

    def pad_last(self, x: mx.array, n: int, value: float) -> mx.array:
        return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n)], constant_values=value)

    def mark_last(self, x: mx.array, index: mx.array) -> mx.array:
        return mx.put_along_axis(mx.zeros_like(x), index, mx.array(1.0, x.dtype), axis=-1)

    def take_last(self, x: mx.array, index: mx.array) -> mx.array:
        return mx.take_along_axis(x, index, axis=-1)

    def f32(self, x: mx.array) -> mx.array:
        return x if x.dtype == mx.float64 else x.astype(mx.float32)  # float64 models are edited in float64

    def like(self, x: mx.array, reference: mx.array) -> mx.array:
        return x.astype(reference.dtype)

    def cast(self, x: mx.array, dtype: str) -> mx.array:
        return x.astype(_DTYPES[dtype]) if mx.issubdtype(x.dtype, mx.floating) else x

    def lost(self, x: mx.array, cast: mx.array) -> mx.array:
        return (mx.isinf(cast) & mx.isfinite(x)).reshape(len(x), -1).any(axis=-1)

    def take(self, x: mx.array, index: mx.array, axis: int) -> mx.array:
        return mx.take(x, index, axis=axis)

    def put(self, x: mx.array, index: mx.array, axis: int, values: mx.array) -> mx.array:
        new = self.copy(x)
        new[(*(slice(None),) * (axis % x.ndim), index)] = values
        return new

    def where(self, mask: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return mx.where(mask, a, b)

    def clip(self, x: mx.array, low: float | None, high: float | None) -> mx.array:
        return mx.clip(x, low, high)

    def norm(self, x: mx.array) -> mx.array:
        return mx.linalg.norm(x, axis=-1, keepdims=True)

    def sum0(self, x: mx.array) -> mx.array:
        return x.sum(axis=0)

    def stop(self, x: mx.array) -> mx.array:
        return mx.stop_gradient(x)

    def sigmoid(self, x: mx.array) -> mx.array:
        return mx.sigmoid(x)

    def tanh(self, x: mx.array) -> mx.array:
        return mx.tanh(x)

    def erf(self, x: mx.array) -> mx.array:
        return mx.erf(x)

    def rsqrt(self, x: mx.array) -> mx.array:
        return mx.rsqrt(x)

    def zeros_like(self, x: mx.array) -> mx.array:
        return mx.zeros_like(x)

    def transpose_last(self, x: mx.array) -> mx.array:
        return x.swapaxes(-1, -2)

    def weight(self, array: Array) -> mx.array:
        # Read along rows of memory it is three times as fast.
        return self.exact(np.ascontiguousarray(array.T))

    def linear(self, x: mx.array, weight: mx.array) -> mx.array:
        return x @ weight.swapaxes(-1, -2)

    def top_k(self, x: mx.array, k: int) -> tuple[mx.array, mx.array]:
        index = mx.argpartition(-x, k - 1, axis=-1)[..., :k] if k < x.shape[-1] else mx.argsort(-x, axis=-1)
        values = mx.take_along_axis(x, index, axis=-1)
        order = mx.argsort(-values, axis=-1)
        index = mx.take_along_axis(index, order, axis=-1).astype(mx.int64)
        return mx.take_along_axis(values, order, axis=-1), index

    def wide(self, x: mx.array) -> mx.array:
        return x.astype(mx.float64 if _has_float64() else mx.float32)

    def exp(self, x: mx.array) -> mx.array:
        # mlx's own has six digits, whatever the dtype.
        return mx.power(mx.array(math.e, mx.float64), x) if x.dtype == mx.float64 else mx.exp(x)

    def exp_less(self, x: mx.array) -> mx.array:
        if x.dtype == mx.float64:
            return mx.maximum(mx.expm1(x) - x, 0.0)
        rest = mx.ones_like(x)
        for k in range(9, 2, -1):  # the difference would keep half of float32's digits
            rest = rest * x / k + 1.0
        return x * x / 2 * rest

    def max_last(self, x: mx.array) -> mx.array:
        return x.max(axis=-1, keepdims=True)

    def sum_last(self, x: mx.array) -> mx.array:
        if x.dtype == mx.float64:
            return x.sum(axis=-1)
        while (n := x.shape[-1]) > 1:  # by halves: a float32 total that grows term by term rounds each of them away
            half = n // 2
            folded = x[..., :half] + x[..., half : 2 * half]
            x = folded if n % 2 == 0 else mx.concatenate([folded, x[..., -1:]], axis=-1)
        return x[..., 0]

    def gather_last(self, x: mx.array, index: mx.array) -> mx.array:
        return mx.take_along_axis(x, index[:, None], axis=-1)[:, 0]

    def copy(self, x: mx.array) -> mx.array:
        return mx.array(x)  # writes rebind one Python object, so another object on the same data is a copy

    def join(self, tensors: Sequence[mx.array]) -> mx.array:
        return mx.concatenate(list(tensors))

    def stack(self, tensors: Sequence[mx.array]) -> mx.array:
        return mx.stack(list(tensors))

    def to_host(self, tensors: Sequence[mx.array]) -> list[Array]:
        return to_numpy(tensors)
