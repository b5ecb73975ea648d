"""Values of packed codes, in float32: integers on an affine scale, and floats of four and eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["affine", "e2m1", "e4m3", "e8m0", "unpacked"]

Values = NDArray[np.float32]
Codes = NDArray[Any]


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _e4m3_table() -> Values:
    """The 256 numbers of float8_e4m3fn: no infinities, and NaN where all bits but the sign are set."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    size[(code & 127) == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


_E4M3 = _e4m3_table()


def unpacked(words: Codes, bits: int) -> NDArray[np.uint8]:
    """[…, word] of unsigned integers that hold codes of `bits` one behind the other, lowest bits first: […, code]."""
    stream = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return stream
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        split = (stream[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return split.reshape(*stream.shape[:-1], -1)
    single = np.unpackbits(stream, axis=-1, bitorder="little").reshape(*stream.shape[:-1], -1, bits)
    return np.packbits(single, axis=-1, bitorder="little")[..., 0]


def affine(words: Codes, scales: Values, biases: Values, bits: int) -> Values:
    """scale · code + bias. words […, word], scales and biases […, group] → […, in]."""
    codes = _grouped(unpacked(words, bits), scales)
    return (codes.astype(np.float32) * scales[..., None] + biases[..., None]).reshape(*words.shape[:-1], -1)


def e2m1(words: Codes, scales: Values) -> Values:
    """scale · the number that four bits write. words […, word], scales […, group] → […, in]."""
    return (_grouped(_E2M1[unpacked(words, 4)], scales) * scales[..., None]).reshape(*words.shape[:-1], -1)


def e4m3(codes: NDArray[np.uint8]) -> Values:
    """The numbers that bytes write as float8_e4m3fn."""
    return _E4M3[codes]


def e8m0(codes: NDArray[np.uint8]) -> Values:
    """The powers of two that bytes write."""
    return np.ldexp(np.float32(1), codes.astype(np.int32) - 127)


def _grouped(values: NDArray[Any], scales: Values) -> NDArray[Any]:
    """[…, in] as […, group, value]."""
    return values.reshape(*scales.shape, -1)
