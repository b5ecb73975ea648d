"""The client's side of REST in an event loop: the calls of rest_calls.py, awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar, cast

import httpx

from ...protos.errors import Unavailable
from ...protos.operations import Operation
from .endpoint import Endpoint
from .in_loop import InLoop
from .rest import http_options, timeout
from .rest_calls import Download, Exchange, call_of
from .rest_errors import Deadline, error_of, translated

__all__ = ["AsyncRestTransport"]

T = TypeVar("T")


class AsyncRestTransport:
    """Calls a server over HTTP."""

    def __init__(self, to: Endpoint) -> None:
        self.address, self.is_here, self._timeout_s = to.address, to.is_here, to.timeout_s
        self._http = InLoop(to.address, lambda: httpx.AsyncClient(**http_options(to)), httpx.AsyncClient.aclose)

    async def ask(self, operation: str | Operation, *args: Any) -> Any:
        """See AsyncTransport."""
        call: Any = call_of(operation, *args)
        if isinstance(call, Exchange):
            return await self._unary(cast("Exchange[Any]", call))
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
        await self._http.close()

    async def _unary(self, call: Exchange[T]) -> T:
        http = self._http()
        with self._translated(self._timeout_s):
            response = await http.request(call.verb, call.path, json=call.body, params=call.params)
        return call.answer(response, self.address)

    async def _read(self, call: Download[T]) -> AsyncGenerator[T, None]:
        http, timeout_s = self._http(), self._timeout_s if call.is_bounded else None
        with self._translated(timeout_s):
            async with http.stream(
                call.verb,
                call.path,
                json=call.body,
                params=call.params,
                headers=call.headers,
                timeout=timeout(timeout_s),
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise error_of(response, self.address)
                decoder, deadline = call.decoder(response.headers), Deadline(self.address, timeout_s)
                async for chunk in response.aiter_bytes():
                    deadline.check()
                    for item in decoder.feed(chunk):
                        yield item
        decoder.close()

    @contextmanager
    def _translated(self, timeout_s: float | None) -> Generator[None]:
        try:
            with translated(self.address, timeout_s):
                yield
        except Unavailable:
            if self._http.is_closed:  # by another task, and nothing is wrong with the server
                raise self._http.closed() from None
            raise
