"""Intervals by the bootstrap: what a figure would be on other draws of the same size. Percentiles, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument

__all__ = ["Estimate", "mean_of_means", "ratio_of_sums", "resampled_counts"]

RESAMPLES = 2000
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """What was resampled: examples, words, contexts."""

    @classmethod
    def of(cls, value: float, draws: Floats, n: int) -> Estimate:
        """From the figure's values on resamples (those that are defined)."""
        kept = draws[np.isfinite(draws)]
        if not len(kept):
            return cls(float(value), float("nan"), float("nan"), n)
        low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(value), float(low), float(high), n)

    def to_json(self) -> dict[str, Any]:
        """`value`, `interval` and `n`."""
        return {"value": self.value, "interval": [self.low, self.high], "n": self.n}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resampled_counts(n: int, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """[resample, item]: how often each of `n` items is drawn, with replacement, in each resample."""
    if n < 1:
        raise InvalidArgument("there is nothing to resample")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def mean_of_means(groups: Sequence[NDArray[Any]], *, seed: int) -> Estimate:
    """The mean over groups of each group's mean; examples are resampled within their group."""
    if not groups or not all(len(group) for group in groups):
        raise InvalidArgument("every group needs at least one example")
    draws: Floats = np.zeros(RESAMPLES)
    for number, group in enumerate(groups):
        if group.dtype == np.bool_:  # drawing with replacement among these is a binomial
            draws += np.random.default_rng(seed + number).binomial(len(group), group.mean(), RESAMPLES) / len(group)
            continue
        draws += resampled_counts(len(group), seed=seed + number) @ group.astype(np.float64) / len(group)
    value = float(np.mean([group.mean() for group in groups]))
    return Estimate.of(value, draws / len(groups), sum(len(group) for group in groups))


def ratio_of_sums(above: NDArray[Any], below: NDArray[Any], *, seed: int) -> Estimate:
    """Σ above / Σ below over items (contexts, say) that are resampled together."""
    if above.shape != below.shape or above.ndim != 1:
        raise InvalidArgument(f"numerators {list(above.shape)} and denominators {list(below.shape)} do not pair")
    counts = resampled_counts(len(above), seed=seed)
    upper, lower = counts @ above.astype(np.float64), counts @ below.astype(np.float64)
    draws = np.divide(upper, lower, out=np.full(len(upper), np.nan), where=lower != 0)
    total = float(below.sum())
    return Estimate.of(float(above.sum()) / total if total else float("nan"), draws, len(above))
