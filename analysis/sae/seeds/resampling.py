"""Intervals and tests for means over pairs of seeds, where each seed is in many pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition, InvalidArgument

__all__ = ["METHODS", "Interval", "Method", "difference", "interval", "mann_whitney", "pair_values", "permutation"]

Matrix = NDArray[np.float64]
"""[seed, seed]: a similarity a pair; symmetric, its diagonal is not read."""

Method = Literal["seeds", "jackknife", "pairs"]
"""How an interval is made. Measured over 1,000 simulated experiments a cell, value = mean + u_a + u_b + noise with the
deviation of u twice that of the noise: how often an interval of 95 % holds the mean, for 5 / 8 / 12 seeds.

- "seeds", .82 / .86 / .90: bootstrap over seeds, percentiles. Seeds are drawn with replacement. A seed that was drawn
  m times stands in m places, every two places with different seeds count, so the pair (a, b) weighs m_a·m_b; two
  places with the same seed form no pair, as a dictionary's likeness to itself is 1 and says nothing. A draw of one
  seed alone has no pair and is drawn again. Of three seeds it holds the mean half of the time, so it asks for four.
- "jackknife", .97 / .95 / .96: leave a seed out, Student's t with n−1 degrees of freedom (Arvesen 1969). The honest
  one for few seeds, and from three on.
- "pairs", .56 / .50 / .44: bootstrap over pairs as though they were independent, which they are not: far too narrow,
  and the worse the more seeds. Only to compare with published figures that were made so.
"""
METHODS: tuple[Method, ...] = ("seeds", "jackknife", "pairs")
_FEWEST = {"seeds": 4, "jackknife": 3, "pairs": 3}
_MOST_LABELLINGS = 20_000
"""Labellings that a permutation test goes through one by one; beyond, it draws."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a mean lies."""

    mean: float
    """Of the pairs as they are, not of the resamples."""
    low: float
    high: float
    confidence: float
    method: Method
    resamples: int
    """0: none were needed."""

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def pair_values(matrix: Matrix) -> NDArray[np.float64]:
    """[pair]: every pair of different seeds once."""
    return matrix[np.triu_indices(len(matrix), 1)]


def interval(
    matrix: Matrix, method: Method = "seeds", *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean over pairs of seeds, [seed, seed], and an interval about it; `Method` says which to choose.

    Raises InvalidArgument for too few seeds, or numbers out of range.
    """
    found = _checked(matrix, method, confidence, resamples)
    mean = float(pair_values(found).mean())
    if method == "jackknife":
        error, freedom = _jackknife(found)
        half = _student(confidence, freedom) * error
        return Interval(mean, mean - half, mean + half, confidence, method, 0)
    draws = _draws(found, method, resamples, np.random.default_rng(seed))
    low, high = _percentiles(draws, confidence)
    return Interval(mean, low, high, confidence, method, resamples)


def difference(
    first: Matrix,
    second: Matrix,
    method: Method = "seeds",
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of the first less that of the second. The seeds of either are drawn for themselves, never as pairs."""
    one, two = (_checked(matrix, method, confidence, resamples) for matrix in (first, second))
    mean = float(pair_values(one).mean() - pair_values(two).mean())
    if method == "jackknife":
        (error, freedom), (other, others) = _jackknife(one), _jackknife(two)
        both = math.hypot(error, other)
        # Welch and Satterthwaite; without any spread the degrees do not matter.
        degrees = both**4 / (error**4 / freedom + other**4 / others) if both else float(min(freedom, others))
        half = _student(confidence, degrees) * both
        return Interval(mean, mean - half, mean + half, confidence, method, 0)
    rng = np.random.default_rng(seed)
    draws = _draws(one, method, resamples, rng) - _draws(two, method, resamples, rng)
    low, high = _percentiles(draws, confidence)
    return Interval(mean, low, high, confidence, method, resamples)


def mann_whitney(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """One-sided p of the Mann–Whitney U test, that values of the first tend to be larger.

    It takes values as independent. Those of pairs that share a seed are not, so its p is too small; `permutation` is
    the test that holds.
    """
    return float(_scipy("stats").mannwhitneyu(first, second, alternative="greater").pvalue)


def permutation(matrix: Matrix, n_first: int, *, resamples: int = 10_000, seed: int = 0) -> float:
    """One-sided p that the first `n_first` dictionaries are more alike among themselves than the rest are.

    `matrix`: [dictionary, dictionary] over both kinds. Labels go to whole dictionaries, which are independent where
    pairs are not: of all labellings (drawn ones where there are more than 20,000), the share with a difference of the
    two means at least as large. Its least value is 1 / labellings: 1 / 252 for five and five.
    """
    n = len(matrix)
    if matrix.shape != (n, n) or not 2 <= n_first <= n - 2:
        raise InvalidArgument(
            f"a permutation test takes a square of likenesses with two dictionaries of either kind or more; got "
            f"{list(matrix.shape)} of which {n_first} are of the first kind"
        )
    exact = math.comb(n, n_first) <= _MOST_LABELLINGS
    labellings = itertools.combinations(range(n), n_first) if exact else _drawn(n, n_first, resamples, seed)
    off = np.where(np.eye(n, dtype=bool), 0.0, matrix)
    here = _gap(off, np.arange(n_first))
    found = np.array([_gap(off, np.asarray(chosen)) for chosen in labellings])
    # A labelling that gives the same sum in another order counts as large, hence the slack of rounding.
    large = int((found >= here - 1e-12).sum())
    return large / len(found) if exact else (large + 1) / (len(found) + 1)


def _drawn(n: int, n_first: int, resamples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    rng = np.random.default_rng(seed)
    return (rng.permutation(n)[:n_first] for _ in range(resamples))


def _gap(off: Matrix, first: NDArray[np.intp]) -> float:
    rest = np.setdiff1d(np.arange(len(off)), first)
    one, two = (off[np.ix_(some, some)].sum() / (len(some) * (len(some) - 1)) for some in (first, rest))
    return float(one - two)


def _draws(matrix: Matrix, method: Method, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[resample]: means."""
    n = len(matrix)
    if method == "pairs":
        values = pair_values(matrix)
        return values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    counts = rng.multinomial(n, [1 / n] * n, size=resamples)
    while (alone := counts.max(axis=1) == n).any():
        counts[alone] = rng.multinomial(n, [1 / n] * n, size=int(alone.sum()))
    off = np.where(np.eye(n, dtype=bool), 0.0, matrix)
    weights = n * n - (counts**2).sum(axis=1)
    return ((counts @ off) * counts).sum(axis=1) / weights


def _jackknife(matrix: Matrix) -> tuple[float, int]:
    """Standard error of the mean over pairs, and its degrees of freedom."""
    n = len(matrix)
    without = [pair_values(np.delete(np.delete(matrix, i, 0), i, 1)) for i in range(n)]
    means = np.array([values.mean() for values in without])
    return float(np.sqrt((n - 1) / n * ((means - means.mean()) ** 2).sum())), n - 1


def _percentiles(draws: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _student(confidence: float, freedom: float) -> float:
    return float(_scipy("stats").t.ppf((1 + confidence) / 2, freedom))


def _checked(matrix: Matrix, method: Method, confidence: float, resamples: int) -> Matrix:
    found = np.asarray(matrix, dtype=np.float64)
    if method not in METHODS:
        raise InvalidArgument(f"method {method!r}; allowed: {', '.join(METHODS)}")
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not np.isfinite(pair_values(found)).all():
        raise InvalidArgument(f"likenesses are a square [seed, seed] of finite numbers, got shape {list(found.shape)}")
    if len(found) < _FEWEST[method]:
        raise InvalidArgument(
            f"{len(found)} seeds are too few for an interval by {method!r}, which needs {_FEWEST[method]} or more; "
            "train more seeds (by 'jackknife' three are enough)"
        )
    if not 0 < confidence < 1 or resamples < 100:
        raise InvalidArgument(
            f"confidence lies between 0 and 1 and resamples are 100 or more; got {confidence} and {resamples}"
        )
    return found


def _scipy(module: str) -> Any:
    try:
        return import_module(f"scipy.{module}")
    except ModuleNotFoundError as error:  # pragma: no cover - with the extra it is there
        raise FailedPrecondition(f"this needs {error.name}: pip install 'probewire[analysis]'") from None
