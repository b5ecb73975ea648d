"""An async iterator that any task of its loop may close, also while another waits for its next item."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, Self, TypeVar

from ...protos.errors import ProbewireError

__all__ = ["AsyncClosable"]

T = TypeVar("T")


class AsyncClosable(Generic[T]):
    """Gives `items` until it is closed; whoever waits for the next one then gets StopAsyncIteration.

    Errors that come of closing are not raised. Tasks that read together take turns.
    """

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items = items
        self._turn = asyncio.Lock()
        """Held by whoever is inside `items`."""
        self._reading: asyncio.Task[T] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        async with self._turn:
            if self._closed:
                raise StopAsyncIteration
            self._reading = asyncio.ensure_future(_next(self._items))  # of its own, so that closing can cancel it
            try:
                return await self._reading
            except (ProbewireError, asyncio.CancelledError):
                task = asyncio.current_task()
                if not self._closed or (task is not None and task.cancelling()):
                    raise
                raise StopAsyncIteration from None
            finally:
                self._reading = None

    async def close(self) -> None:
        """End it. Doing it twice, or after the end, is harmless."""
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
        async with self._turn:
            await self._items.aclose()


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)
