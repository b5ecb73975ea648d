"""The client's side of REST: JSON requests; tensors come as length-delimited protobuf or as safetensors bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, TypeVar, cast

import httpx

from ...protos.operations import Operation
from .closable import Closable
from .endpoint import Endpoint
from .gathered import Gathered
from .rest_calls import Download, Exchange, call_of
from .rest_errors import Deadline, error_of, translated
from .rest_interrupt import Interrupt

__all__ = ["RestTransport", "http_options", "timeout"]

CONNECT_TIMEOUT_S = 10.0
UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""A call waits for a connection of its own in nobody's queue: the server's has words."""

T = TypeVar("T")


class RestTransport:
    """Calls a server over HTTP."""

    def __init__(self, to: Endpoint) -> None:
        self.address, self.is_here, self._timeout_s = to.address, to.is_here, to.timeout_s
        self._http = httpx.Client(**http_options(to))

    def ask(self, operation: str | Operation, *args: Any) -> Any:
        """See Transport."""
        call: Any = call_of(operation, *args)
        return self._unary(cast("Exchange[Any]", call)) if isinstance(call, Exchange) else self._gathered(call)

    def listen(self, operation: str | Operation, request: Any) -> Closable[Any]:
        """See Transport."""
        call: Any = call_of(operation, request)
        return self._stream(call)

    def close(self) -> None:
        self._http.close()

    def _unary(self, call: Exchange[T]) -> T:
        with translated(self.address, self._timeout_s):
            response = self._http.request(call.verb, call.path, json=call.body, params=call.params)
        return call.answer(response, self.address)

    def _stream(self, call: Download[T]) -> Closable[T]:
        interrupt = Interrupt()
        return Closable(self._read(call, interrupt), interrupt)

    def _read(self, call: Download[T], interrupt: Interrupt) -> Iterator[T]:
        timeout_s = self._timeout_s if call.is_bounded else None
        with (
            translated(self.address, timeout_s),
            self._http.stream(
                call.verb,
                call.path,
                json=call.body,
                params=call.params,
                headers=call.headers,
                timeout=timeout(timeout_s),
            ) as response,
        ):
            if not response.is_success:
                response.read()
                raise error_of(response, self.address)
            interrupt.hold(response)
            decoder, deadline = call.decoder(response.headers), Deadline(self.address, timeout_s)
            for chunk in response.iter_bytes():
                deadline.check()
                yield from decoder.feed(chunk)
        decoder.close()

    def _gathered(self, call: Gathered[Download[Any], T]) -> T:
        with closing(self._stream(call.stream)) as items:
            for item in items:
                call.hear(item)
        return call.whole()


def http_options(to: Endpoint) -> dict[str, Any]:
    """How an httpx client behaves."""
    return {
        "base_url": to.address,
        "headers": to.authorization,
        "timeout": timeout(to.timeout_s),
        "trust_env": not to.is_here,  # a proxy cannot reach this machine
        "verify": True if to.tls is None else to.tls.context,
        "limits": UNLIMITED,
    }


def timeout(timeout_s: float | None) -> httpx.Timeout:
    """Of each wait."""
    return httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
