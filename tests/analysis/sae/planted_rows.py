"""Rows that are sparse sums of planted directions, and batches of them that fail on demand."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probewire.analysis.sae.data.batches import ArrayBatches

D_IN, SIZE = 16, 32


def rows(n: int = 1000, d_in: int = D_IN, n_directions: int = 24, seed: int = 0) -> NDArray[np.float32]:
    """[row, d_in], three directions a row on average."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_directions, d_in)) / d_in**0.5
    active = rng.random((n, n_directions)) < 3 / n_directions
    return ((active * rng.uniform(0.5, 2.0, active.shape)) @ directions + 0.3).astype(np.float32)


def batches(seed: int = 1, **options: Any) -> ArrayBatches:
    """Of the same rows, shuffled by `seed`."""
    return ArrayBatches(rows(**options), SIZE, seed, manifest={"site": "resid_post.1", "model_hash": "tiny"})


class Failing:
    """Batches that, at the n-th read of this object, raise, or kill their process as `kill -9` does."""

    def __init__(self, inner: Any, reads: int, *, kill: bool = False) -> None:
        self._inner, self._left, self._kill = inner, reads, kill
        self.d_in, self.batch_size, self.manifest = inner.d_in, inner.batch_size, inner.manifest

    def __iter__(self) -> Failing:
        return self

    def __next__(self) -> Any:
        if not self._left:
            if self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ConnectionError("the reader is gone")
        self._left -= 1
        return next(self._inner)

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._inner.load_state_dict(state)
