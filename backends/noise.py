"""Noise that is the same whatever the batch, chunk or backend: one Philox draw a (seed, site, absolute position)."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ..protos.sites import Site

__all__ = ["noise_row"]


@lru_cache(maxsize=4096)
def _site_key(site: Site) -> int:
    return int.from_bytes(blake2b(str(site).encode(), digest_size=8).digest(), "little")


def noise_row(seed: int, site: Site, position: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal values of one whole row of a site, of the row's shape."""
    # As uint64: numpy turns a list that holds a number of 2**63 or more into float64, where seeds and sites collide.
    key = np.array([seed, _site_key(site)], dtype=np.uint64)
    counter = np.array([0, 0, 0, position], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return generator.standard_normal(shape, dtype=np.float32)
