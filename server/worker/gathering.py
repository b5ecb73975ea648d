"""How long an idle engine waits for generations: for those that are sent together, and for the next of whoever's has ended."""

from __future__ import annotations

import time

__all__ = ["Gathering"]

GATHER_S = 0.003
"""An idle engine waits so long after a generation's arrival for those sent beside it: they then share the first step,
which costs a burst two steps less (a prompt's and, at the end, a late starter's last)."""
GATHER_MOST_S = 0.015
"""… and no longer than this in all."""
REST_S = 0.06
"""So long after the last generation's end no slice of other work begins: scripts and people's clients that ask one after
the other are back by then, and would wait for the whole of it."""


class Gathering:
    """Used by the model's thread."""

    def __init__(self) -> None:
        self._since: tuple[float, float] | None = None
        """When the first and the last generation came, while more are waited for."""
        self._rest_until_s = 0.0

    def came(self) -> None:
        """A generation came to an idle engine."""
        now_s, self._rest_until_s = time.monotonic(), 0.0
        self._since = (self._since[0] if self._since else now_s, now_s)

    def ended(self) -> None:
        """The last generation ended, none waits, and other work would begin its next slice."""
        self._rest_until_s = time.monotonic() + REST_S

    def left_s(self, *, enough: bool) -> float:
        """How much longer to wait; 0 when a step, or a slice, may begin. `enough`: it runs already, or no slot would be left."""
        if self._since is None:
            return 0.0 if enough else max(self._rest_until_s - time.monotonic(), 0.0)
        first_s, last_s = self._since
        left_s = min(last_s + GATHER_S, first_s + GATHER_MOST_S) - time.monotonic()
        if left_s <= 0 or enough:
            self._since = None
            return 0.0
        return left_s
