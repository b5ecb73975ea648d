"""The score interval of a difference of two paired shares (Tango 1998), which holds where few answers change, or none."""

from __future__ import annotations

from math import inf, sqrt
from statistics import NormalDist

__all__ = ["score_bounds", "score_statistic"]


def score_statistic(better: float, worse: float, n: float, difference: float) -> float:
    """How many deviations the observed difference lies above `difference`, as a hypothesis about (better − worse)/n.

    `better` of `n` pairs became a yes and `worse` a no; they need not be whole (pairs that count for less than one).
    """
    gap = better - worse - n * difference
    b = -better - worse + (2 * n - better + worse) * difference
    c = -worse * difference * (1 - difference)
    lost = (sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (
        4 * n
    )  # of a pair to become a no, most likely under the hypothesis
    variance = n * (2 * lost + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if gap == 0 else (inf if gap > 0 else -inf)
    return gap / sqrt(variance)


def score_bounds(better: float, worse: float, n: float, confidence: float) -> tuple[float, float]:
    """The differences that the data do not rule out."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (better - worse) / n
    return _crossing(better, worse, n, z, -1.0, middle), _crossing(better, worse, n, -z, middle, 1.0)


def _crossing(better: float, worse: float, n: float, z: float, low: float, high: float) -> float:
    """Where the statistic, which falls with the difference, takes the value `z`."""
    for _ in range(60):
        middle = (low + high) / 2
        if score_statistic(better, worse, n, middle) > z:
            low = middle
        else:
            high = middle
    return (low + high) / 2
