"""The client's side of gRPC in an event loop: the calls of rpc_calls.py, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar, cast

import grpc.aio

from ...protos.operations import Operation
from .endpoint import Endpoint
from .in_loop import InLoop
from .rpc import channel
from .rpc_calls import Streamed, Unary, call_of
from .rpc_errors import as_error, translated

__all__ = ["AsyncRpcTransport"]

T = TypeVar("T")


class AsyncRpcTransport:
    """Calls a server over gRPC."""

    def __init__(self, to: Endpoint) -> None:
        self.address, self.is_here = to.address, to.is_here
        self._timeout_s, self._metadata = to.timeout_s, tuple(to.authorization.items())
        self._channel = InLoop(to.address, lambda: channel(to, grpc.aio), lambda channel: channel.close())

    async def ask(self, operation: str | Operation, *args: Any) -> Any:
        """See AsyncTransport."""
        call: Any = call_of(operation, *args)
        if isinstance(call, Unary):
            return await self._unary(cast("Unary[Any]", call))
        async with aclosing(self._read(call.stream)) as items:
            async for item in items:
                call.hear(item)
        return call.whole()

    def listen(self, operation: str | Operation, request: Any) -> AsyncGenerator[Any, None]:
        """See AsyncTransport."""
        call: Any = call_of(operation, request)
        return self._read(call)

    async def close(self) -> None:
        """See AsyncTransport."""
        await self._channel.close()

    async def _unary(self, call: Unary[T]) -> T:
        start = self._channel().unary_unary(call.method, type(call.request).SerializeToString, call.answer.FromString)
        asked = start(call.request, timeout=self._timeout_s, metadata=self._metadata)
        async with self._ending(asked, self._timeout_s):
            answer = await asked
            return call.read(answer, dict(await asked.trailing_metadata() or ()))

    async def _read(self, call: Streamed[T]) -> AsyncGenerator[T, None]:
        read, timeout_s = call.reader(), self._timeout_s if call.is_bounded else None
        start = self._channel().unary_stream(call.method, type(call.request).SerializeToString, call.parse)
        messages = start(call.request, timeout=timeout_s, metadata=self._metadata)
        async with self._ending(messages, timeout_s):
            async for message in messages:
                for item in read(message):
                    yield item

    @asynccontextmanager
    async def _ending(self, call: Any, timeout_s: float | None) -> AsyncGenerator[None]:
        """The call ends with the block; what it ended with before is raised as ours.

        grpc raises CancelledError for a server's CANCELLED as it does for a task that is cancelled; here it is the latter alone.
        """
        try:
            with translated(self.address, timeout_s):
                yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if self._channel.is_closed:
                raise self._channel.closed() from None
            raise as_error(await _end_of(call), self.address, timeout_s) from None
        finally:
            call.cancel()


async def _end_of(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
