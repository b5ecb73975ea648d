"""A tensor as plain data: dtype name, shape, little-endian bytes. numpy in and out."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgument

__all__ = ["DTYPES", "FLOAT_DTYPES", "Array", "Tensor", "dtype_name", "narrowed", "numpy_dtype", "require_finite"]

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
"""Every dtype that crosses the wire. Bytes are little-endian and C-ordered."""

FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype called `name`. Raises InvalidArgument for a name outside DTYPES."""
    try:
        return DTYPES[name]
    except KeyError:
        raise InvalidArgument(f"unknown dtype {name!r}; allowed: {', '.join(DTYPES)}") from None


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The wire name of a numpy dtype. Raises InvalidArgument when it has none."""
    try:
        return _NAMES[np.dtype(dtype)]
    except KeyError:
        raise InvalidArgument(f"dtype {dtype} cannot be sent; allowed: {', '.join(DTYPES)}") from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """An immutable array that compares by value. `Tensor.of(x)` takes anything array-like."""

    dtype: str
    """A key of DTYPES."""
    shape: tuple[int, ...]
    data: bytes
    """Little-endian, C order; exactly `prod(shape) · itemsize` bytes."""

    def __post_init__(self) -> None:
        itemsize = numpy_dtype(self.dtype).itemsize
        if any(n < 0 for n in self.shape):
            raise InvalidArgument(f"tensor shape {self.shape} has a negative axis; every axis must be 0 or more")
        expected = math.prod(self.shape) * itemsize
        if len(self.data) != expected:
            raise InvalidArgument(
                f"tensor of dtype {self.dtype} and shape {list(self.shape)} needs {expected} bytes, got {len(self.data)}"
            )

    @classmethod
    def of(cls, value: Tensor | Array | Sequence[Any] | float) -> Tensor:
        """Copy an array, nested lists or a number. Python floats become float32; integers int64."""
        if isinstance(value, Tensor):
            return value
        array = _as_array(value)
        if sys.byteorder == "big":
            array = array.byteswap()
        return cls(dtype_name(array.dtype), tuple(array.shape), np.ascontiguousarray(array).tobytes())

    def numpy(self) -> Array:
        """A read-only view of the bytes; no copy."""
        dtype = numpy_dtype(self.dtype)
        array = np.frombuffer(self.data, dtype=dtype).reshape(self.shape)
        return array.byteswap() if sys.byteorder == "big" else array

    def floats(self) -> NDArray[np.float32]:
        """The values as float32 (a copy unless they already are)."""
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite: see `require_finite`
            return self.numpy().astype(np.float32, copy=False)

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {list(self.shape)})"


def _as_array(value: Any) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged nested lists
        raise InvalidArgument(f"not a rectangular array of numbers: {error}") from None
    if array.dtype.kind == "f" and array.dtype.itemsize == 8 and not isinstance(value, np.ndarray):
        array = narrowed(array, "float32", "a tensor of Python floats is float32; send a float64 array instead")
    if array.dtype not in _NAMES:
        if array.dtype.kind in "iu":
            return array.astype(np.int64)
        raise InvalidArgument(
            f"cannot use values of dtype {array.dtype} as a tensor; allowed: {', '.join(DTYPES)} or lists of numbers"
        )
    return array


def narrowed(array: Array, dtype: str, fix: str) -> Array:
    """The array in another float dtype. Raises InvalidArgument for finite numbers that this does not hold."""
    with np.errstate(over="ignore"):
        cast = array.astype(numpy_dtype(dtype))
    lost = np.isfinite(array) & ~np.isfinite(cast)
    if lost.any():
        raise InvalidArgument(f"{float(array[lost].flat[0]):g} is beyond {dtype}: {fix}")
    return cast


def require_finite(tensor: Tensor, what: str) -> None:
    """Raise InvalidArgument when a float tensor holds NaN, infinity, or numbers beyond float32, in which edits compute."""
    if tensor.dtype not in FLOAT_DTYPES or np.isfinite(floats := tensor.floats()).all():
        return
    own = np.isfinite(tensor.numpy())
    if own.all():
        raise InvalidArgument(
            f"{what} holds {float(tensor.numpy()[~np.isfinite(floats)].flat[0]):g}, which is beyond float32"
        )
    raise InvalidArgument(f"{what} holds {int((~own).sum())} values that are NaN or infinite; send finite numbers")
