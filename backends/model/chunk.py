"""How many prompt rows go into one forward of the engine: as many as this model makes in a slice of time on this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .limits import Limits

if TYPE_CHECKING:
    from ..hooks.base import Backend

__all__ = ["SLICE_S", "rows_a_second", "with_chunk"]

SLICE_S = 0.2
"""How long one forward, or one turn of work that can be cut, may hold the model's thread: others wait that long at most."""
TRIAL_ROWS = (4, 16, 64)
"""Tried in turn until one takes a slice: a slow model would spend seconds on more."""
LEAST, MOST = 64, 512
"""Below, the fixed costs of a forward are too large a part; above, there is nothing more to win."""


def rows_a_second(backend: Backend) -> float:
    """Of a plain forward over a few rows."""
    backend.final_rows(np.zeros((1, 1), dtype=np.int64))  # warms up
    rate = 0.0
    for rows in TRIAL_ROWS:
        start_s = time.perf_counter()
        backend.final_rows(np.zeros((1, rows), dtype=np.int64))
        seconds = max(time.perf_counter() - start_s, 1e-6)
        rate = rows / seconds
        if seconds > SLICE_S:
            break
    return rate


def with_chunk(limits: Limits, backend: Backend) -> Limits:
    """The limits with a chunk's size found by trying, where none was chosen."""
    if limits.chunk_tokens:
        return limits
    rows = max(int(rows_a_second(backend) * SLICE_S), 1)
    return replace(limits, chunk_tokens=min(max(1 << (rows.bit_length() - 1), LEAST), MOST))
