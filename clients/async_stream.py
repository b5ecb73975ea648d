"""A generation as it comes, in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Any, Self

from ..protos.errors import FailedPrecondition
from ..protos.model import Event
from .requests.asked import Asked
from .stream import Step, StreamView, Told
from .transport.async_closable import AsyncClosable

__all__ = ["AsyncStream"]


class AsyncStream(StreamView):
    """An async iterator of Steps: `async with client.stream(…) as stream`, or at once `async for step in client.stream(…)`.

    The request is sent when the stream is entered, awaited or read. Leaving the `async with` early, closing it, and cancelling
    the task that reads it cancel the request on the server. At its end it has a `result`. A task that waits for the next step
    when another closes the stream finds it ended; `finished` says whether it had come to its end.
    """

    def __init__(self, events: AsyncGenerator[Event, None], asked: Asked, *, keep: bool = True) -> None:
        super().__init__(Told(asked, keep))
        self._events = AsyncClosable(events)
        self._beginning = asyncio.Lock()

    def __await__(self) -> Generator[Any, None, Self]:
        return self._begun().__await__()

    async def _begun(self) -> Self:
        """Once the request is accepted, and `started` known."""
        async with self._beginning:
            if self._told.started is not None:
                return self
            try:
                self._told.start(await anext(self._events))
            except StopAsyncIteration:
                raise FailedPrecondition("the stream ended before it began; ask for another") from None
            except BaseException:
                await self.close()
                raise
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Step:
        await self._begun()
        async for event in self._events:
            step = self._told.step(event)
            if step is not None:
                return step
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return await self._begun()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is left. Doing it twice, or after the end, is harmless."""
        await self._events.close()
