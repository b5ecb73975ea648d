"""Pass, fail or inconclusive: what an interval says about a bound, and how many items would decide where it says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, isfinite
from statistics import NormalDist
from typing import Any, Literal

from ...protos.errors import InvalidArgument
from .statistics import Figure

__all__ = ["Check", "Verdict", "holm", "judged", "overall"]

Verdict = Literal["pass", "fail", "inconclusive"]
Worse = Literal["lower", "higher"]
"""Which way the figure goes when things get worse."""


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """A figure held against a bound. Where lower is worse: pass when the interval lies above it, fail when below it."""

    name: str
    suite: str
    figure: Figure
    bound: float
    worse: Worse
    verdict: Verdict
    p_harm: float
    """One-sided, that the figure is no worse than its bound."""
    needed: int | None
    """Items that would decide, were the figure and its spread to stay; None: it is decided, or lies on the bound."""
    unit: str = ""
    """Of the figure and the bound: "share", "nats", …"""
    note: str = ""
    p_adjusted: float | None = None
    """`p_harm` among the checks of its suite (Holm 1979)."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    """Plain data that the report shows: examples, parts."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "suite": self.suite,
            "verdict": self.verdict,
            **self.figure.to_json(),
            "bound": self.bound,
            "worse": self.worse,
            "unit": self.unit,
            "p_harm": self.p_harm,
            "p_adjusted": self.p_adjusted,
            "items_that_would_decide": self.needed,
            "note": self.note,
            **({"details": self.details} if self.details else {}),
        }

    def __str__(self) -> str:
        more = f"; {self.needed} items would decide" if self.needed else ""
        return f"{self.verdict}: {self.suite}/{self.name} {self.figure}, bound {self.bound:+.4g}{more}"


def judged(
    name: str,
    figure: Figure,
    bound: float,
    *,
    worse: Worse = "lower",
    suite: str = "",
    unit: str = "",
    note: str = "",
    details: dict[str, Any] | None = None,
) -> Check:
    """Non-inferiority with three answers. Paired accuracies: `bound` −0.02 passes where the interval's low end is above it.

    A figure that is not a number fails: a variant that gives none is not merely untested.
    Raises InvalidArgument for a bound that is no finite number.
    """
    if not isfinite(bound):
        raise InvalidArgument(f"the bound of {name!r} is a finite number, got {bound}")
    if not isfinite(figure.value):
        return Check(
            name, suite, figure, bound, worse, "fail", 0.0, None, unit, note or "not a number", details=details or {}
        )
    lower = worse == "lower"
    passed = figure.low > bound if lower else figure.high < bound
    failed = figure.high < bound if lower else figure.low > bound
    verdict: Verdict = "pass" if passed else "fail" if failed else "inconclusive"
    p = figure.p_at_least(bound) if lower else figure.p_at_most(bound)
    needed = _needed(figure, bound) if verdict == "inconclusive" else None
    return Check(name, suite, figure, bound, worse, verdict, p, needed, unit, note, details=details or {})


def holm(checks: Sequence[Check]) -> list[Check]:
    """The checks of one suite, where only a harm that holds among all of them stays a fail (Holm 1979).

    Fails are claimed at half of what the intervals leave out, on their side. Passes stay: all of them are needed at once.
    """
    order = sorted(range(len(checks)), key=lambda i: checks[i].p_harm)
    found, highest = list(checks), 0.0
    for rank, i in enumerate(order):
        check = checks[i]
        highest = max(highest, min(1.0, (len(checks) - rank) * check.p_harm))
        level = (1 - check.figure.confidence) / 2
        fails = check.verdict == "fail" and highest <= level
        if check.verdict == "fail" and not fails:
            note = "beyond its bound alone, not among the checks of its suite"
            needed = _needed(check.figure, check.bound)
            check = replace(check, verdict="inconclusive", note=check.note or note, needed=needed)
        found[i] = replace(check, p_adjusted=highest)
    return found


def overall(checks: Sequence[Check]) -> Verdict:
    """Fail where one fails, else inconclusive where one is (or there is none), else pass."""
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "inconclusive"


def _needed(figure: Figure, bound: float) -> int | None:
    """(z·spread/distance)² items, z of the interval; of shares, where their score interval would end at the bound.

    Shares without a difference: a little more than (1.96/δ)² times the share that changed; z²·(1 − δ)/δ where none did.
    """
    distance, z = abs(figure.value - bound), NormalDist().inv_cdf((1 + figure.confidence) / 2)
    if not distance or not isfinite(figure.spread):
        return None
    least = max(ceil((z * figure.spread / distance) ** 2), figure.n + 1)
    if not figure.shares:
        return least
    most = least
    while not figure.decides(bound, most):
        most *= 2
    while least < most:  # bisection: more items only narrow it
        middle = (least + most) // 2
        least, most = (least, middle) if figure.decides(bound, middle) else (middle + 1, most)
    return most
