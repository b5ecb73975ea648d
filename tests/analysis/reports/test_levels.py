"""Levels at their limits, and the row that decides."""

from __future__ import annotations

import pytest

from probewire.analysis.reports.levels import RiskRow, level_of, worst


@pytest.mark.parametrize(
    ("part", "value", "level"),
    [
        ("activation change", 0.01, "low"),
        ("activation change", 0.0101, "medium"),
        ("activation change", 0.2, "high"),
        ("activation change", 0.21, "critical"),
        ("general KL", 0.02, "low"),
        ("general KL", 0.5, "high"),
        ("general KL", float("nan"), "critical"),
        ("general KL", float("inf"), "critical"),
        ("predicted drop", -3.0, "low"),
        ("predicted drop", 1.5, "medium"),
        ("predicted drop", 40.0, "high"),
        ("circuit overlap", 0.3, "medium"),
        ("circuit overlap", 1.0, "high"),
    ],
)
def test_a_level(part: str, value: float, level: str) -> None:
    assert level_of(part, value) == level


def test_the_worst_row_decides() -> None:
    rows = [RiskRow("general KL", str(i), 0.0, level) for i, level in enumerate(("low", "high", "medium", "high"))]
    found = worst(rows)
    assert found is not None
    assert (found.level, found.of) == ("high", "1")
    assert worst([]) is None
