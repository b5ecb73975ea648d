"""Figures with their intervals: of shares, of means, and of paired differences, whose items may come in clusters.

Intervals are percentiles of the bootstrap over clusters, widened for few of them (Hesterberg 2015, "What teachers should
know about the bootstrap": the expanded percentile interval); below eight clusters they are Student's. Differences of yes
and no get Tango's score interval where that is the wider one: no changed answer among 20 is no proof that none would change,
and the bootstrap alone would say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...protos.errors import FailedPrecondition, InvalidArgument
from .score_interval import score_bounds, score_statistic

__all__ = ["CONFIDENCE", "Figure", "measured", "paired", "wilson"]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 1000
"""Resamples drawn at once."""
_FEW = 8
"""Clusters below which no number of resamples reaches the tails that Student's t has."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A mean over items and its interval: of one measure, or of variant less base on the same items."""

    value: float
    low: float
    high: float
    n: int
    """Items."""
    clusters: int
    """What was resampled: templates, documents; the items themselves where none were given."""
    confidence: float
    seed: int
    spread: float
    """Deviation of an item such that spread²/n is the mean's variance, clusters counted in."""
    base: float | None = None
    """Mean of the base, for a paired difference."""
    variant: float | None = None
    changed: float | None = None
    """Share of items whose values differ, for a paired difference."""
    shares: bool = False
    """Every item is yes or no on both sides."""
    draws: Floats = field(default_factory=lambda: np.zeros(0), repr=False)
    """[resample]."""

    def p_at_most(self, bound: float) -> float:
        """One-sided p of "the true value is at most `bound`": small where the figure is clearly above it."""
        return self._p(bound, above=True)

    def p_at_least(self, bound: float) -> float:
        """One-sided p of "the true value is at least `bound`": small where the figure is clearly below it."""
        return self._p(bound, above=False)

    def decides(self, bound: float, n: int) -> bool:
        """Whether the score interval of `n` items with the same shares would leave `bound` out."""
        low, high = score_bounds(*_independent(self.value, self.changed or 0.0, n, self.spread), self.confidence)
        return not low <= bound <= high

    def _p(self, bound: float, *, above: bool) -> float:
        if self.clusters < 2 or not np.isfinite(self.value):
            return 1.0
        found = self._by_student(bound, above=above) if self.clusters < _FEW else self._by_draws(bound, above=above)
        if self.shares and self.base is not None and abs(bound) < 1:
            z = score_statistic(*self._discordant(), bound)
            found = max(found, NormalDist().cdf(-z if above else z))
        return found

    def _by_draws(self, bound: float, *, above: bool) -> float:
        beyond = self.draws <= bound if above else self.draws >= bound
        share = (1 + int(beyond.sum())) / (1 + len(self.draws))
        if share >= 1:
            return 1.0
        return float(_t().cdf(NormalDist().inv_cdf(share) * _narrowing(self.clusters), self.clusters - 1))

    def _by_student(self, bound: float, *, above: bool) -> float:
        error, gap = self.spread / np.sqrt(self.n), self.value - bound
        if error == 0:
            return 1.0 if gap == 0 or (gap > 0) != above else 0.0
        return float(_t().cdf((-gap if above else gap) / error, self.clusters - 1))

    def _discordant(self) -> tuple[float, float, float]:
        """Items that became a yes, that became a no, and all, as so many independent ones."""
        return _independent(self.value, self.changed or 0.0, self.n, self.spread)

    def to_json(self) -> dict[str, Any]:
        """Plain data; a figure that is not a number is null."""
        plain = {name: _plain(getattr(self, name)) for name in ("value", "base", "variant", "changed")}
        found = {"value": plain.pop("value"), "interval": [_plain(self.low), _plain(self.high)]}
        found |= {"confidence": self.confidence, "n": self.n, "clusters": self.clusters, "seed": self.seed}
        return found | {name: value for name, value in plain.items() if value is not None}

    def __str__(self) -> str:
        return f"{self.value:+.4g} [{self.low:+.4g}, {self.high:+.4g}] (n = {self.n})"


def measured(
    values: ArrayLike,
    *,
    clusters: Sequence[object] | None = None,
    weights: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Figure:
    """The mean of `values` [item], weighted where `weights` [item] are given (tokens of each text, say).

    Items of one cluster (any hashable value an item) are drawn together. An item that is no number makes the figure none.
    Raises InvalidArgument for no items or lengths that differ, FailedPrecondition where scipy is missing.
    """
    rows, weight, groups = _checked(values, weights, clusters)
    if not np.isfinite(rows).all():
        nan = float("nan")
        return Figure(nan, nan, nan, len(rows), len(np.unique(groups)), CONFIDENCE, seed, nan)
    sums, sizes = (np.bincount(groups, weights=w).astype(np.float64) for w in (rows * weight, weight))
    value, count = float(sums.sum() / sizes.sum()), len(sums)
    if count < 2:
        return Figure(value, -np.inf, np.inf, len(rows), count, CONFIDENCE, seed, np.inf)
    residual = sums - value * sizes
    variance = count / (count - 1) * float((residual**2).sum()) / float(sizes.sum()) ** 2
    spread = float(np.sqrt(variance * len(rows)))
    if count < _FEW:
        half = _student(count) * float(np.sqrt(variance))
        return Figure(value, value - half, value + half, len(rows), count, CONFIDENCE, seed, spread)
    draws = _draws(sums, sizes, seed, resamples)
    low, high = np.quantile(draws, _levels(count))
    return Figure(value, float(low), float(high), len(rows), count, CONFIDENCE, seed, spread, draws=draws)


def paired(
    base: ArrayLike,
    variant: ArrayLike,
    *,
    clusters: Sequence[object] | None = None,
    weights: ArrayLike | None = None,
    shares: bool | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Figure:
    """Mean of variant less base over the same items in the same order; both [item], booleans or numbers.

    `shares`: that each item is a yes or a no (default: where all are 0 or 1). Raises what `measured` raises.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (base, variant))
    if before.shape != after.shape or before.ndim != 1:
        raise InvalidArgument(f"base {list(before.shape)} and variant {list(after.shape)} do not pair item by item")
    found = measured(after - before, clusters=clusters, weights=weights, seed=seed, resamples=resamples)
    weight = np.ones(len(before)) if weights is None else np.asarray(weights, dtype=np.float64)
    could = weights is None and bool(np.isin(np.concatenate([before, after]), (0.0, 1.0)).all())
    if shares and not could:
        raise InvalidArgument("shares are of items that are 0 or 1 on both sides, all of one weight")
    yes_no = could if shares is None else shares
    found = replace(
        found,
        base=float(np.average(before, weights=weight)),
        variant=float(np.average(after, weights=weight)),
        changed=float((before != after).mean()),
        shares=yes_no,
    )
    if not yes_no or found.clusters < 2:
        return found
    low, high = score_bounds(*_independent(found.value, found.changed or 0.0, found.n, found.spread), CONFIDENCE)
    return replace(found, low=min(found.low, low), high=max(found.high, high))


def wilson(right: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of a single share: (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927); (0, 1) of nothing."""
    if not of:
        return 0.0, 1.0
    z, p = NormalDist().inv_cdf(0.5 + confidence / 2), right / of
    middle, half = p + z * z / (2 * of), z * float(np.sqrt(p * (1 - p) / of + z * z / (4 * of * of)))
    low, high = (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)
    return (0.0 if right == 0 else low), (1.0 if right == of else high)


def _checked(
    values: ArrayLike, weights: ArrayLike | None, clusters: Sequence[object] | None
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Values, weights and the number of each item's cluster."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or not len(rows):
        raise InvalidArgument(f"a figure needs one number an item and at least one item, got {list(rows.shape)}")
    weight = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != rows.shape or not (np.isfinite(weight).all() and (weight > 0).all()):
        raise InvalidArgument(f"weights are one positive number for each of the {len(rows)} items")
    if clusters is None:
        return rows, weight, np.arange(len(rows))
    if len(clusters) != len(rows):
        raise InvalidArgument(f"{len(clusters)} clusters are named for {len(rows)} items; name one an item")
    numbers = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    return rows, weight, np.array([numbers[name] for name in clusters])


def _draws(sums: Floats, sizes: Floats, seed: int, resamples: int) -> Floats:
    """[resample]: the weighted mean over clusters drawn with replacement."""
    rng, n = np.random.default_rng(seed), len(sums)
    found: list[Floats] = []
    for start in range(0, resamples, _CHUNK):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - start)).astype(np.float64)
        found.append((counts @ sums) / (counts @ sizes))
    return np.concatenate(found)


def _narrowing(clusters: int) -> float:
    """A resample of n has 1/n for 1/(n − 1) in its variance."""
    return float(np.sqrt((clusters - 1) / clusters))


def _levels(clusters: int) -> tuple[float, float]:
    """Quantiles of the draws that hold what Student's t would, for so many clusters."""
    far = _student(clusters) / _narrowing(clusters)
    low = NormalDist().cdf(-far)
    return low, 1 - low


def _student(clusters: int) -> float:
    return float(_t().ppf((1 + CONFIDENCE) / 2, clusters - 1))


def _independent(value: float, changed: float, n: int, spread: float) -> tuple[float, float, float]:
    """Became yes, became no, and all: n independent items would say as much as these n clustered ones do."""
    alone = changed - value**2
    inflation = max(1.0, spread**2 / alone) if alone > 0 else 1.0
    better, worse = (changed + value) / 2, (changed - value) / 2
    return better * n / inflation, worse * n / inflation, n / inflation


def _t() -> Any:
    """Student's t, from scipy."""
    try:
        return import_module("scipy.stats").t
    except ImportError as error:
        raise FailedPrecondition("intervals need scipy: pip install 'probewire[analysis]'") from error


def _plain(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
