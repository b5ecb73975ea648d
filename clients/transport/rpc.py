"""The client's side of gRPC: one channel, its calls as the operations of `Service`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, TypeVar, cast

import grpc

from ...protos.operations import Operation
from .closable import Closable
from .endpoint import Endpoint
from .gathered import Gathered
from .rpc_calls import Streamed, Unary, call_of
from .rpc_errors import translated

__all__ = ["RpcTransport", "channel"]

MAX_MESSAGE_BYTES = 64 << 20
"""Of one answer; tensors come in pieces of under 1 MiB, so only a long list can be near it."""
KEEPALIVE_S = 60.0
"""A connection that does not answer a ping is given up, so that a dead box ends a call instead of hanging it."""
KEEPALIVE_TIMEOUT_S = 20.0
RECONNECT_S = 5.0
"""At most so long after a server is back, calls reach it again; grpc itself waits up to two minutes."""

T = TypeVar("T")


class RpcTransport:
    """Calls a server over gRPC."""

    def __init__(self, to: Endpoint) -> None:
        self.address, self.is_here = to.address, to.is_here
        self._timeout_s, self._metadata = to.timeout_s, tuple(to.authorization.items())
        self._channel: grpc.Channel = channel(to, grpc)

    def ask(self, operation: str | Operation, *args: Any) -> Any:
        """See Transport."""
        call: Any = call_of(operation, *args)
        return self._unary(cast("Unary[Any]", call)) if isinstance(call, Unary) else self._gathered(call)

    def listen(self, operation: str | Operation, request: Any) -> Closable[Any]:
        """See Transport."""
        call: Any = call_of(operation, request)
        return self._stream(call)

    def close(self) -> None:
        self._channel.close()

    def _unary(self, call: Unary[T]) -> T:
        start = self._channel.unary_unary(call.method, type(call.request).SerializeToString, call.answer.FromString)
        with translated(self.address, self._timeout_s):
            answer, told = start.with_call(call.request, timeout=self._timeout_s, metadata=self._metadata)
            return call.read(answer, dict(told.trailing_metadata() or ()))

    def _stream(self, call: Streamed[T]) -> Closable[T]:
        timeout_s = self._timeout_s if call.is_bounded else None
        start = self._channel.unary_stream(call.method, type(call.request).SerializeToString, call.parse)
        with translated(self.address, timeout_s):
            messages: Any = start(call.request, timeout=timeout_s, metadata=self._metadata)
        return Closable(self._read(call, messages, timeout_s), messages.cancel)

    def _read(self, call: Streamed[T], messages: Any, timeout_s: float | None) -> Iterator[T]:
        read = call.reader()
        with translated(self.address, timeout_s):
            try:
                for message in messages:
                    yield from read(message)
            finally:
                messages.cancel()

    def _gathered(self, call: Gathered[Streamed[Any], T]) -> T:
        with closing(self._stream(call.stream)) as items:
            for item in items:
                call.hear(item)
        return call.whole()


def channel(to: Endpoint, kind: Any) -> Any:
    """A channel of one of grpc's two kinds: the module, or its `aio`."""
    target, tls = f"{to.host}:{to.port}", to.tls
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),  # the server's own limit answers with a reason
        ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(RECONNECT_S * 1000)),
        ("grpc.enable_http_proxy", 0 if to.is_here else 1),
    ]
    if not to.is_secure:
        return kind.insecure_channel(target, options)
    files = (None, None, None) if tls is None else (tls.ca, tls.key, tls.cert)
    return kind.secure_channel(target, grpc.ssl_channel_credentials(*files), options)
