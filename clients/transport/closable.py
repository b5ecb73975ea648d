"""An iterator that any thread may close, also while another waits for its next item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Generic, TypeVar

from ...protos.errors import ProbewireError

__all__ = ["Closable"]

T = TypeVar("T")


class Closable(Iterator[T], Generic[T]):
    """Gives `items` until it is closed; whoever waits for the next one then gets StopIteration.

    `interrupt` ends that wait, from another thread and at any time; without one it ends with the next item. Errors that
    come of closing are not raised. Threads that read together take turns.
    """

    def __init__(self, items: Iterator[T], interrupt: Callable[[], object] = lambda: None) -> None:
        self._items, self._interrupt = items, interrupt
        self._turn = Lock()
        """Held by whoever is inside `items`."""
        self._closed = self._shut = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        taken = self._take()
        if taken is not None and not self._closed:
            return taken[0]
        self._shut_down()
        raise StopIteration

    def _take(self) -> tuple[T] | None:
        with self._turn:
            if self._closed:
                return None
            try:
                return (next(self._items),)
            except ProbewireError:
                if not self._closed:
                    raise
                return None

    def close(self) -> None:
        """End it. Doing it twice, or after the end, is harmless."""
        if not self._closed:
            self._closed = True
            self._interrupt()
        self._shut_down()

    def _shut_down(self) -> None:
        """Close `items`, unless somebody is inside, who does it on coming out."""
        if not self._shut and self._turn.acquire(blocking=False):
            try:
                self._shut = True
                close = getattr(self._items, "close", None)
                if close is not None:
                    close()
            finally:
                self._turn.release()
