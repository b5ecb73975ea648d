"""A request's events, tied to the caller's connection: when the caller goes away, the request is cancelled at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ....protos.errors import Cancelled, Internal, ProbewireError
from ....protos.model import Event, Finished, Input
from ....protos.wire.events import nbytes
from ...streams import closing
from .body import offload
from .errors import of_ours, request_id

__all__ = ["CompletenessCheck", "Encoding", "StreamResponse", "begun", "gathered", "step_bytes", "unless_gone"]

T = TypeVar("T")
ItemT = TypeVar("ItemT")
InT = TypeVar("InT", contravariant=True)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. When the caller disconnects first, `work` is cancelled and Cancelled is raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Cancelled("the caller disconnected")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def gathered(request: Request, stream: AsyncIterator[ItemT]) -> list[ItemT]:
    """Everything that `stream` gives."""
    return await unless_gone(request.receive, _all(stream))


async def _all(stream: AsyncIterator[ItemT]) -> list[ItemT]:
    async with closing(stream):
        return [item async for item in stream]


async def begun(request: Request, stream: AsyncIterator[ItemT]) -> AsyncIterator[ItemT]:
    """`stream` once its first item is here, so that a refusal still has an HTTP status of its own."""
    return _Begun(await unless_gone(request.receive, _first(stream)), stream)


async def _first(stream: AsyncIterator[ItemT]) -> ItemT:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        raise Internal("the operation ended without a single event") from None
    except BaseException:
        async with closing(stream):
            raise


class _Begun(AsyncIterator[ItemT]):
    """A stream whose first item was taken. Not a generator: closing one before its first step would close nothing."""

    def __init__(self, first: ItemT, stream: AsyncIterator[ItemT]) -> None:
        self._first = [first]
        self._stream = stream

    async def __anext__(self) -> ItemT:
        return self._first.pop() if self._first else await anext(self._stream)

    async def aclose(self) -> None:
        """Close the stream itself."""
        async with closing(self._stream):
            pass


class CompletenessCheck(AsyncIterator[list[Event]]):
    """The events of a request, refused as a whole answer when an input has not finished."""

    def __init__(self, stream: AsyncIterator[list[Event]], inputs: Iterable[Input]) -> None:
        self._stream = stream
        self._unfinished = {item.name for item in inputs if not item.source_only}

    async def __anext__(self) -> list[Event]:
        try:
            events = await anext(self._stream)
        except StopAsyncIteration:
            if self._unfinished:
                raise Internal(f"the answer ended before inputs {sorted(self._unfinished)} were finished") from None
            raise
        for event in events:
            if isinstance(event, Finished):
                self._unfinished.discard(event.input)
        return events

    async def aclose(self) -> None:
        """Cancel the request."""
        async with closing(self._stream):
            pass


def step_bytes(events: Iterable[Event]) -> int:
    """About how many bytes the events of a step hold."""
    return sum(map(nbytes, events))


class Encoding(Protocol[InT]):
    """How a stream looks on the wire."""

    media_type: str

    def item(self, item: InT) -> list[bytes]:
        """What one item (the events of one step) becomes."""
        ...

    def error(self, error: ProbewireError, request_id: str) -> bytes:
        """The last thing sent when the stream fails after it has begun."""
        ...

    def end(self) -> bytes:
        """The last thing sent when all went well."""
        ...


class StreamResponse(Response):
    """Sends a stream as it comes: a slow reader holds back its own request alone, a vanished one ends it."""

    def __init__(
        self, stream: AsyncIterator[ItemT], encoding: Encoding[ItemT], size: Callable[[ItemT], int] = lambda item: 0
    ) -> None:
        """`size` says how many bytes an item is about to become: big ones are encoded off the event loop."""
        super().__init__(headers={"x-accel-buffering": "no"}, media_type=encoding.media_type)
        del self.headers["content-length"]
        self._stream: AsyncIterator[Any] = stream
        self._encoding: Encoding[Any] = encoding
        self._size: Callable[[Any], int] = size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(scope, send))
        except (Cancelled, OSError):
            return  # the caller is gone, and `closing` has cancelled the request

    async def _send(self, scope: Scope, send: Send) -> None:
        async with closing(self._stream) as stream, closing(self._chunks(stream, scope)) as chunks:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self, stream: AsyncIterator[Any], scope: Scope) -> AsyncIterator[bytes]:
        try:
            async for item in stream:
                for chunk in await offload(self._size(item), self._encoding.item, item):
                    yield chunk
        except Exception as error:  # noqa: BLE001 - logged by of_ours, and told to the caller
            yield self._encoding.error(of_ours(error, scope), request_id(scope))
        else:
            if last := self._encoding.end():
                yield last
