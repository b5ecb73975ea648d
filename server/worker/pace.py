"""How many token rows fit into a slice of time, by what forwards have taken so far."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ...backends.hooks.base import Backend
from ...backends.model.chunk import rows_a_second

__all__ = ["Pace"]

WORTH_NOTING_S = 0.05
"""Of a shorter forward the fixed costs are too large a part; it counts where it was faster than thought."""
CAUTION = 0.25
"""Share of a slice for the first forward of its kind: nobody knows yet what a row of it costs."""


class Pace:
    """Rows a second, for each kind of forward, and for each request once it has had one. Used by the model's thread."""

    def __init__(self) -> None:
        self._general = 1000.0
        self._kinds: dict[str, float] = {}
        self._requests: dict[int, float] = {}
        self._run_rows = 0

    def try_out(self, backend: Backend) -> None:
        """Time a plain forward, so that the first request finds a pace."""
        self._general = rows_a_second(backend)

    def rows(self, kind: str, request: Any, seconds: float, chunk: int = 1) -> int:
        """How many rows of a request's next forward take so long; of runs no fewer than a `chunk`, of others one."""
        known = self._requests.get(id(request))
        if known is None and kind != "run" and kind not in self._kinds:
            seconds *= CAUTION
        rows = max(1, int(seconds * (known or self._kinds.get(kind, self._general))))
        return self._steady(rows, chunk) if kind == "run" else rows

    def _steady(self, rows: int, chunk: int) -> int:
        """Whole chunks, kept until they are half as many again as go, or two thirds of it.

        The rows that share a forward share their rounding: the same request should find the same company again.
        """
        if not rows / 1.5 < self._run_rows <= 1.5 * rows:
            self._run_rows = chunk * max(rows // chunk, 1)
        return self._run_rows

    def seconds(self, kind: str, rows: int) -> float:
        """About how long so many rows will take."""
        return rows / self._kinds.get(kind, self._general)

    @contextmanager
    def timed(self, kind: str, request: Any, rows: int) -> Generator[None]:
        """A forward of so many rows."""
        start_s = time.perf_counter()
        yield
        seconds = max(time.perf_counter() - start_s, 1e-6)
        self._note(self._kinds, kind, rows, seconds)
        if kind != "run":
            self._note(self._requests, id(request), rows, seconds)

    def _note(self, rates: dict[Any, float], key: Any, rows: int, seconds: float) -> None:
        old, new = rates.get(key, self._general), rows / seconds
        if seconds >= WORTH_NOTING_S or new > old:
            if new < old:  # slower counts at once; of runs, whose cost is known, one slow forward says less
                rates[key] = max(new, old / 2) if key == "run" else new
            else:
                rates[key] = (old + new) / 2

    def forget(self, request: Any) -> None:
        """A request has ended."""
        self._requests.pop(id(request), None)
