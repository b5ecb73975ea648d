"""How fast a worker goes: counters for metrics, and how long the queue will take."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

__all__ = ["Throughput"]

SHORTEST_RETRY_S, LONGEST_RETRY_S = 1.0, 120.0
MEMORY = 0.98
"""Weight of the past in the moving average, per forward."""


class Throughput:
    """Written by the model's thread, read by any."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._steps = self._runs = self._rows = self._tokens = 0
        self._busy_s = 0.0
        self._worked = False
        self._recent_tokens = self._recent_s = 0.0

    @property
    def busy_s(self) -> float:
        """How long the turn under way has taken; 0 between turns."""
        since = self._since_s
        return 0.0 if since is None else time.monotonic() - since

    @contextmanager
    def busy(self) -> Generator[None]:
        """One turn of the model's thread."""
        self._since_s = start = time.monotonic()
        self._worked = False
        try:
            yield
        finally:
            self._since_s = None
            if self._worked:
                elapsed = time.monotonic() - start
                self._busy_s += elapsed
                self._recent_s = MEMORY * self._recent_s + elapsed

    def stepped(self, n_sequences: int, n_tokens: int) -> None:
        """A forward of the batching engine."""
        self._steps += 1
        self._rows += n_sequences
        self._tokens += n_tokens
        self._note(n_tokens)

    def ran(self, n_tokens: int) -> None:
        """A forward that carried runs."""
        self._runs += 1
        self._note(n_tokens)

    def _note(self, n_tokens: int) -> None:
        self._worked = True
        self._recent_tokens = MEMORY * self._recent_tokens + n_tokens

    def seconds_for(self, tokens: int) -> float:
        """About how long so many tokens will take at the recent pace, within reason."""
        pace = self._recent_tokens / self._recent_s if self._recent_s else 0.0
        seconds = tokens / pace if pace else SHORTEST_RETRY_S
        return min(max(seconds, SHORTEST_RETRY_S), LONGEST_RETRY_S)

    def totals(self) -> dict[str, Any]:
        """Fields of WorkerStatus, since the start."""
        return {
            "steps": self._steps,
            "runs": self._runs,
            "rows": self._rows,
            "step_s": self._busy_s,
            "tokens": self._tokens,
        }
