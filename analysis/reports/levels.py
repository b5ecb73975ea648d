"""Low, medium, high, critical: by numbers, the worst row decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

__all__ = ["LEVELS", "LIMITS", "Level", "RiskRow", "level_of", "worst"]

Level = Literal["low", "medium", "high", "critical"]
LEVELS: tuple[Level, ...] = ("low", "medium", "high", "critical")

LIMITS: dict[str, tuple[float, float, float]] = {
    "activation change": (0.01, 0.05, 0.20),
    "general KL": (0.02, 0.1, 0.5),
    "predicted drop": (1.0, 2.0, float("inf")),
    "circuit overlap": (0.10, 0.30, float("inf")),
}
"""Row → the largest value of low, medium and high; past the last it is critical."""


@dataclass(frozen=True, slots=True)
class RiskRow:
    """One figure that has a say."""

    part: str
    """A key of LIMITS, or "at chance"."""
    of: str
    """The probe, weight or circuit."""
    value: float
    level: Level
    unit: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        limits = LIMITS.get(self.part)
        shown = None if limits is None else [limit if isfinite(limit) else None for limit in limits]
        value = self.value if isfinite(self.value) else None
        return {"part": self.part, "of": self.of, "value": value, "unit": self.unit, "level": self.level, "limits": shown, "note": self.note}  # fmt: skip


def level_of(part: str, value: float) -> Level:
    """By `LIMITS`; what is no number is critical."""
    if value != value:
        return "critical"
    low, medium, high = LIMITS[part]
    return "low" if value <= low else "medium" if value <= medium else "high" if value <= high else "critical"


def worst(rows: Sequence[RiskRow]) -> RiskRow | None:
    """The row that sets the level, the first of several."""
    return max(rows, key=lambda row: LEVELS.index(row.level), default=None)
