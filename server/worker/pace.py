"""How many token rows fit into a slice of time, by what forwards have taken so far."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ...backends.hooks.base import Backend
from ...backends.model.chunk import rows_a_second
from .cost import Cost

__all__ = ["Pace"]

WORTH_NOTING_S = 0.05
"""Of a shorter forward the fixed costs are too large a part; it counts where it was faster than thought."""
CAUTION = 0.25
"""Share of a slice for the first forward of its kind: nobody knows yet what a row of it costs."""
ENOUGH = 2
"""Forwards of a request, after which its own costs count; before, those of its kind do."""


class Pace:
    """Rows a second, for each kind of forward, and for each request once it has had one. Used by the model's thread."""

    def __init__(self) -> None:
        self._general = self._run = 1000.0
        self._run_rows = 0
        self._kinds: dict[str, Cost] = {}
        self._requests: dict[int, Cost] = {}

    def try_out(self, backend: Backend) -> None:
        """Time a plain forward, so that the first request finds a pace."""
        self._general = self._run = rows_a_second(backend)

    def rows(self, kind: str, request: Any, seconds: float, chunk: int = 1) -> int:
        """How many rows of a request's next forward take so long; of runs no fewer than a `chunk`, of others one."""
        if kind == "run":
            return self._steady(int(seconds * self._run), chunk)
        known = self._requests.get(id(request))
        if known is None or known.count < ENOUGH:
            known = self._kinds.get(kind)
        return max(1, int(CAUTION * seconds * self._general)) if known is None else known.rows(seconds)

    def _steady(self, rows: int, chunk: int) -> int:
        """Whole chunks, kept until they are half as many again as go, or two thirds of it.

        The rows that share a forward share their rounding: the same request should find the same company again.
        """
        rows = max(rows, 1)
        if not rows / 1.5 < self._run_rows <= 1.5 * rows:
            self._run_rows = chunk * max(rows // chunk, 1)
        return self._run_rows

    def seconds(self, kind: str, rows: int) -> float:
        """About how long so many rows will take."""
        known = self._kinds.get(kind)
        return rows / (self._run if kind == "run" else self._general) if known is None else known.seconds(rows)

    @contextmanager
    def timed(self, kind: str, request: Any, rows: int) -> Generator[None]:
        """A forward of so many rows."""
        start_s = time.perf_counter()
        yield
        seconds = max(time.perf_counter() - start_s, 1e-6)
        if kind == "run":
            self._note_run(rows / seconds, seconds)
        else:
            self._kinds.setdefault(kind, Cost()).note(rows, seconds)
            self._requests.setdefault(id(request), Cost()).note(rows, seconds)

    def _note_run(self, new: float, seconds: float) -> None:
        old = self._run
        if new > old:
            self._run = (old + new) / 2
        elif seconds >= WORTH_NOTING_S:
            self._run = max(new, old / 2)  # slower counts at once; but one slow forward says little

    def forget(self, request: Any) -> None:
        """A request has ended."""
        self._requests.pop(id(request), None)
