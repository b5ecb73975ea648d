"""The gateway's connection to one worker: bytes in, bytes out, and foreign errors translated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio

from ...protos.errors import DeadlineExceeded, ProbewireError, Unavailable
from ...protos.loading import HealthReport
from ..auth.callers import Caller
from ..grpc_status import as_error, is_from_service
from ..health import report_of

__all__ = ["WorkerChannel"]

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

_BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
"""What gRPC itself answers when the other side goes away."""


class WorkerChannel:
    """Calls on one run of a worker. `explain` says why the connection broke, when that is what happened."""

    def __init__(self, address: str, explain: Callable[[], Awaitable[ProbewireError | None]]) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._explain = explain
        self.last_message_s = 0.0
        """When a stream last brought something; `time.monotonic`."""

    async def unary(
        self, method: str, request: bytes, caller: Caller | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """One call. `method` as in `/probewire.v1.Models/List`; `caller`: on whose behalf."""
        call = self._unary(method)(request, timeout=timeout_s, metadata=_metadata(caller))
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise await self._translated(error) from None
        except asyncio.CancelledError:
            raise await self._closed() from None

    async def stream(self, method: str, request: bytes, caller: Caller | None = None) -> AsyncIterator[bytes]:
        """A streaming call's messages as they came. Closing cancels the call."""
        call = self._stream(method)(request, metadata=_metadata(caller))
        try:
            while isinstance(message := await _read(call), bytes):
                self.last_message_s = time.monotonic()
                yield message
        except grpc.aio.AioRpcError as error:
            raise await self._translated(error) from None
        except asyncio.CancelledError:
            raise await self._closed() from None
        finally:
            call.cancel()

    async def health(self, timeout_s: float) -> HealthReport:
        """The worker's own report, after a real forward there. Raises when there is no answer in time."""
        call = self._unary("/grpc.health.v1.Health/Check")(b"", timeout=timeout_s)
        try:
            answer = await call
            trailers = dict(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded(f"no answer to a health probe within {timeout_s:g} s") from None
            raise await self._translated(error) from None
        except asyncio.CancelledError:
            raise await self._closed() from None
        return report_of(answer, lambda key: _as_bytes(trailers.get(key)))

    async def close(self) -> None:
        """Let go of the connection. Calls still open end as broken."""
        await self._channel.close()

    def _unary(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        return cast("grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]", self._channel.unary_unary(method))

    def _stream(self, method: str) -> grpc.aio.UnaryStreamMultiCallable[bytes, bytes]:
        return cast("grpc.aio.UnaryStreamMultiCallable[bytes, bytes]", self._channel.unary_stream(method))

    async def _closed(self) -> ProbewireError:
        """For a call that ended as cancelled. grpcio says so too when the channel is closed under it: whoever waits must
        be told, as a cancellation that nobody asked for leaves the caller's own call without an answer.
        """
        if _being_cancelled():
            raise asyncio.CancelledError
        return await self._explain() or Unavailable("the connection to the worker was closed; retry")

    async def _translated(self, error: grpc.aio.AioRpcError) -> ProbewireError:
        if is_from_service(error) or error.code() not in _BROKEN:
            return as_error(error)
        return await self._explain() or as_error(error)


async def _read(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> bytes | Any:
    """The next message, or EOF.

    grpcio never frees a message that arrives for a read whose task was cancelled (measured: 17 kB a cancelled stream),
    so when we are cancelled the call is, and the read comes to its own end.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        call.cancel()
        reading.add_done_callback(_retrieve)
        raise


def _retrieve(reading: asyncio.Future[Any]) -> None:
    """asyncio is not to complain about an error that nobody waits for."""
    if not reading.cancelled():
        reading.exception()


def _metadata(caller: Caller | None) -> tuple[tuple[str, bytes], ...]:
    return () if caller is None else caller.metadata()


def _being_cancelled() -> bool:
    """Whether it is our own task that is cancelled, and not the call because its channel was closed."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _as_bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
