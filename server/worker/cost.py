"""What forwards of one kind cost: something each, and something a row."""

from __future__ import annotations

__all__ = ["Cost"]

KEPT = 0.7
"""Weight of what was known before, at each forward that is noted."""
SPREAD = 0.1
"""Sizes that differ by less (standard deviation, relative) do not tell what is fixed."""
LEAST_A_ROW = 0.25
"""Of the mean cost a row: so much at least is each row's own, whatever the forwards seen so far say."""
GROWTH = 2.0
"""Times the largest forward of late: a next one is no larger."""


class Cost:
    """Seconds of a forward = fixed + rows · each, by least squares over those noted, the late ones above all."""

    def __init__(self) -> None:
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        """Of weights, rows, seconds, rows² and rows·seconds."""
        self._last, self._largest = (0, 0.0), 0.0
        self.count = 0
        """Forwards noted."""

    def note(self, rows: int, seconds: float) -> None:
        """A forward was made."""
        added = (1.0, rows, seconds, rows * rows, rows * seconds)
        n, x, y, xx, xy = (KEPT * was + new for was, new in zip(self._sums, added, strict=True))
        self._sums = (n, x, y, xx, xy)
        self._last, self._largest = (rows, seconds), max(rows, KEPT * self._largest)
        self.count += 1

    def _line(self) -> tuple[float, float]:
        """Fixed seconds, and seconds a row."""
        n, *sums = self._sums
        x, y, xx, xy = (total / n for total in sums)
        variance = xx - x * x
        if variance <= (SPREAD * x) ** 2:
            return 0.0, y / x
        each = max((xy - x * y) / variance, LEAST_A_ROW * y / x)
        return (y - each * x, each) if each * x < y else (0.0, y / x)

    def seconds(self, rows: int) -> float:
        """About how long a forward of so many rows takes."""
        fixed, each = self._line()
        return fixed + rows * each

    def rows(self, seconds: float) -> int:
        """How many rows take so long; at least one, and no more than twice the largest of late."""
        fixed, each = self._line()
        rows, took_s = self._last
        most = GROWTH * self._largest if took_s < seconds else rows * seconds / took_s  # too slow counts at once
        return max(1, int(min((seconds - fixed) / each, most)))
