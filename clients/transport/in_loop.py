"""A connection that belongs to an event loop, made in the one that first uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ...protos.errors import FailedPrecondition

__all__ = ["InLoop"]

C = TypeVar("C")


class InLoop(Generic[C]):
    """Makes the connection when it is first asked for. Raises FailedPrecondition in another loop, and once closed."""

    def __init__(self, address: str, make: Callable[[], C], close: Callable[[C], Awaitable[None]]) -> None:
        self._address, self._make, self._close = address, make, close
        self._made: tuple[asyncio.AbstractEventLoop, C] | None = None
        self.is_closed = False

    def __call__(self) -> C:
        if self.is_closed:
            raise self.closed()
        loop = asyncio.get_running_loop()
        if self._made is None:
            self._made = loop, self._make()
        if self._made[0] is not loop:
            raise FailedPrecondition(
                f"the client of {self._address} was used in another event loop before, and its connection belongs to "
                "that; make an AsyncClient in each (each asyncio.run has its own), or use Client"
            )
        return self._made[1]

    def closed(self) -> FailedPrecondition:
        """What calls end with that find it closed."""
        return FailedPrecondition(f"the client of {self._address} is closed; make a new AsyncClient")

    async def close(self) -> None:
        """Let go of it. Doing it twice is harmless."""
        self.is_closed, made = True, self._made
        self._made = None
        if made is not None and made[0] is asyncio.get_running_loop():  # a loop that has ended took its sockets along
            await self._close(made[1])
