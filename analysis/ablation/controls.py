"""Random neurons that are as active as the ones under test: what a causal claim is held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument

__all__ = ["MIN_CONTROLS", "matched_controls", "z_score"]

MIN_CONTROLS = 30
POOL = 3
"""Controls are drawn from so many times their number of candidates, the nearest in activation."""


def matched_controls(
    strengths: NDArray[np.float64], units: Sequence[int], n: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """`n` sets of other units, each with one match for every unit of `units` and none twice within a set.

    `strengths` [unit] is each one's mean |activation|. A unit's matches are drawn at random from the 3·n others nearest
    to it in strength. Raises InvalidArgument where the layer has fewer than n others.
    """
    others = np.setdiff1d(np.arange(len(strengths)), units)
    if len(others) < n or len(others) < 2 * len(units):
        raise InvalidArgument(
            f"{n} controls for {len(units)} units need as many others in the layer, and twice the units; it has "
            f"{len(others)}; ask for fewer controls (at least {MIN_CONTROLS})"
        )
    pools = [
        others[np.argsort(np.abs(strengths[others] - strengths[unit]), kind="stable")[: POOL * n]] for unit in units
    ]
    if len(units) == 1:
        return [(int(i),) for i in rng.choice(pools[0], size=n, replace=False)]
    return [_one_each(pools, others, rng) for _ in range(n)]


def _one_each(pools: Sequence[NDArray[np.intp]], others: NDArray[np.intp], rng: np.random.Generator) -> tuple[int, ...]:
    """A match for each unit. Where a pool is used up, any other unit that is still free."""
    chosen: list[int] = []
    for pool in pools:
        free = np.setdiff1d(pool, chosen)
        chosen.append(int(rng.choice(free if len(free) else np.setdiff1d(others, chosen))))
    return tuple(chosen)


def z_score(value: float, controls: NDArray[np.float64]) -> float:
    """Deviations (n − 1) of `value` above the mean of `controls` [control]; ±inf where they do not vary and it differs."""
    spread = float(controls.std(ddof=1))
    gap = value - float(controls.mean())
    if spread == 0.0:
        return 0.0 if gap == 0.0 else float(np.copysign(np.inf, gap))
    return gap / spread
