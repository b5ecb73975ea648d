"""What stability has to be better than: random dictionaries, and data with the structure taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument

__all__ = ["PUBLISHED", "PublishedControl", "gaussian_like", "random_dictionaries", "shuffled"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PublishedControl:
    """A random control of HUSAI's log (brightlikethelight/HUSAI), to reproduce."""

    d_in: int
    d_sae: int
    seeds: tuple[int, ...]
    """Of the torch generators, one a dictionary."""
    pwmcc: str
    """As printed."""


PUBLISHED = (
    PublishedControl(
        128, 128, tuple(100_000 + seed for seed in (42, 123, 456, 789, 1011, 2022, 2023, 2024)), "0.24624"
    ),
    PublishedControl(128, 1024, tuple(range(1000, 1005)), "0.298829"),
)


def random_dictionaries(d_in: int, d_sae: int, seeds: Sequence[int]) -> dict[str, Floats]:
    """Dictionaries [d_sae, d_in] of directions that are uniform on the sphere, by "random SEED".

    As HUSAI draws them: torch.randn(d_in, d_sae) from a CPU generator with the seed, a latent a column.
    Raises InvalidArgument for no size, or a seed given twice.
    """
    if d_in < 1 or d_sae < 1:
        raise InvalidArgument(f"d_in and d_sae are 1 or more, got {d_in} and {d_sae}")
    if len(set(seeds)) != len(seeds):
        raise InvalidArgument(f"seeds {list(seeds)}: each only once, as the same seed gives the same dictionary")
    torch: Any = import_module("torch")
    found: dict[str, Floats] = {}
    for seed in seeds:
        drawn = torch.randn(d_in, d_sae, generator=torch.Generator().manual_seed(seed))
        found[f"random {seed}"] = np.ascontiguousarray((drawn / drawn.norm(dim=0, keepdim=True)).numpy().T)
    return found


def shuffled(activations: NDArray[Any], seed: int) -> Floats:
    """[row, d_in] with every column in an order of its own: each dimension's values stay, what they share goes."""
    rows = _rows(activations)
    return np.random.default_rng(seed).permuted(rows, axis=0)


def gaussian_like(activations: NDArray[Any], seed: int, n_rows: int | None = None) -> Floats:
    """[row, d_in] from a Gaussian with the mean and covariance of the activations: correlated, with no sparse structure.

    `n_rows`: how many, by default as many as there are. Covariances without full rank are taken as they are.
    """
    rows = _rows(activations).astype(np.float64)
    n = len(rows) if n_rows is None else n_rows
    if n < 1 or len(rows) < 2:
        raise InvalidArgument(f"a covariance needs two rows or more and n_rows one or more; got {len(rows)} and {n}")
    mean = rows.mean(axis=0)
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / (len(rows) - 1))
    # Rounding leaves eigenvalues of a singular covariance a little below 0.
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    drawn = np.random.default_rng(seed).standard_normal((n, len(mean)))
    return (drawn @ root.T + mean).astype(np.float32)


def _rows(activations: NDArray[Any]) -> Floats:
    rows = np.asarray(activations)
    if rows.ndim != 2 or not rows.size:
        raise InvalidArgument(f"activations are an array [row, d_in], got shape {list(rows.shape)}")
    rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        raise InvalidArgument("activations hold NaN or infinity; drop those rows first")
    return rows
