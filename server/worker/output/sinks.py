"""Where a request's events wait for their reader: one asyncio task, or one thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

from ....protos.errors import ProbewireError
from ....protos.model import Event
from ....protos.wire.events import nbytes
from ..scheduler import Scheduler

__all__ = ["AsyncSink", "QueueSink"]

WAKE_ABOVE_BYTES = 1 << 20
"""A reader that takes from a backlog above this may free a sequence that was held back."""


class _Backlog:
    """Bytes put and not read, and the wake-up of a scheduler that waits for the reader."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def backlog_bytes(self) -> int:
        """What has been put and not been read."""
        return self._bytes

    def _add(self, events: list[Event]) -> None:
        with self._lock:
            self._bytes += sum(nbytes(event) for event in events)

    def _take(self, events: list[Event]) -> None:
        with self._lock:
            before = self._bytes
            self._bytes -= sum(nbytes(event) for event in events)
        if before > WAKE_ABOVE_BYTES:
            self._scheduler.wake()


class AsyncSink(_Backlog):
    """Events to one asyncio task, made in its loop."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[Event] | ProbewireError | None] = asyncio.Queue()

    def put(self, events: list[Event]) -> None:
        """From the model's thread."""
        self._add(events)
        self._send(events)

    def end(self, error: ProbewireError | None) -> None:
        """From the model's thread."""
        self._send(error)

    def _send(self, item: list[Event] | ProbewireError | None) -> None:
        with suppress(RuntimeError):  # the loop has closed, and nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def events(self) -> AsyncIterator[list[Event]]:
        """Everything in order; raises the error that ended it, if one did."""
        while (item := await self._queue.get()) is not None:
            if isinstance(item, ProbewireError):
                raise item
            yield item
            self._take(item)


class QueueSink(_Backlog):
    """Events to one thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._queue: queue.SimpleQueue[list[Event] | ProbewireError | None] = queue.SimpleQueue()

    def put(self, events: list[Event]) -> None:
        """From the model's thread."""
        self._add(events)
        self._queue.put(events)

    def end(self, error: ProbewireError | None) -> None:
        """From the model's thread."""
        self._queue.put(error)

    def events(self) -> Iterator[Event]:
        """Everything in order; raises the error that ended it, if one did."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, ProbewireError):
                raise item
            yield from item
            self._take(item)
