"""Small unsigned integers packed one after another into 32-bit words, the lowest bits first."""

from __future__ import annotations

import numpy as np

from ....protos.tensors import Array

__all__ = ["unpacked", "words_for"]


def words_for(n: int, bits: int) -> int:
    """Words that hold `n` values."""
    return -(-n * bits // 32)


def unpacked(words: Array, bits: int, n: int) -> Array:
    """uint8 [n, column] of int32 words [word, column], packed down the columns; a value may lie across two words.

    `bits`: 8 at most, so that 32 values fill `bits` words to the last bit.
    """
    short = -len(words) % bits
    padded = np.pad(words.view(np.uint32), ((0, short), (0, 0)))
    values = np.empty((len(padded) // bits * 32, words.shape[1]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for k in range(32):
        word, shift = divmod(k * bits, 32)
        field = padded[word::bits] >> np.uint32(shift)
        if shift + bits > 32:
            field = field | (padded[word + 1 :: bits] << np.uint32(32 - shift))
        values[k::32] = (field & mask).astype(np.uint8)
    return values[:n]
