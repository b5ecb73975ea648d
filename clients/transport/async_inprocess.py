"""A service in this process, asked from threads, so that the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...protos.operations import Operation
from ...protos.service import Service
from .inprocess import InProcessTransport

__all__ = ["AsyncInProcessTransport"]

_END = object()


class AsyncInProcessTransport:
    """As InProcessTransport. A stream has a thread of its own: threads that wait for a place never keep others from reading.

    Cancelled, a stream ends at once; an operation with one answer goes on in its thread, and nobody hears it.
    """

    def __init__(self, service: Service) -> None:
        self._here = InProcessTransport(service)
        self.address, self.is_here = self._here.address, self._here.is_here

    async def ask(self, operation: str | Operation, *args: Any) -> Any:
        """See AsyncTransport."""
        return await asyncio.to_thread(self._here.ask, operation, *args)

    async def listen(self, operation: str | Operation, request: Any) -> AsyncGenerator[Any, None]:
        """See AsyncTransport."""
        loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(1, "probewire")
        items = self._here.listen(operation, request)
        try:
            while (item := await loop.run_in_executor(threads, next, items, _END)) is not _END:
                yield item
        finally:
            items.close()
            threads.shutdown(wait=False)

    async def close(self) -> None:
        """See AsyncTransport."""
        await asyncio.to_thread(self._here.close)
