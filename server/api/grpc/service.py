"""The gRPC API: decodes, calls `Operations`, encodes. Workers and the gateway both serve it.

Calls that compute are streams: a worker decodes them in `server/streams.py`, the gateway passes their bytes on
(`server/gateway/pass_through.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, cast

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ....protos import probewire_pb2 as pb
from ....protos.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from ....protos.operations import BY_NAME, Operation
from ....protos.wire.parsing import parse
from ...auth.access import Access
from ...auth.callers import CALLER, Caller, caller_from_metadata
from ...auth.proxies import FORWARDED_FOR, NO_PROXIES, Proxies, host_of
from ...grpc_answer import answered, log_callers_quietly, write
from ...health import HealthApi
from ...service import Answering, answer
from ...streams import EncodedStreams, Streams, closing, off_the_loop

__all__ = ["Admit", "RpcServer", "admit_at_the_door", "admit_from_the_gateway"]

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Call = Callable[[bytes], Awaitable[bytes]]
_Stream = Callable[[bytes], AsyncIterator[bytes]]

Admit = Callable[[_Context], Caller]

REQUEST_S = 120.0
"""How long a request may take to arrive; as HTTP's bodies."""
STRANGER_S = 5.0
"""The same where no key is asked for: health and reflection."""

SERVICES: tuple[str, ...] = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())


def admit_at_the_door(access: Access, proxies: Proxies = NO_PROXIES) -> Admit:
    """By the key in the call's metadata."""

    def admit(context: _Context) -> Caller:
        given = [(key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)]
        forwarded_for = [value for key, value in given if key == FORWARDED_FOR]
        peer = proxies.caller(host_of(context.peer()), forwarded_for)
        return access.enter(dict(given).get("authorization", ""), peer, api="grpc")

    return admit


def admit_from_the_gateway(context: _Context) -> Caller:
    """By what the gateway says, on a socket that nobody else can open."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, bytes)}
    return caller_from_metadata(metadata)


class RpcServer:
    """A gRPC server over some operations. `streams` replaces how their tensor streams become bytes."""

    def __init__(
        self,
        operations: Answering,
        admit: Admit,
        *,
        max_request_bytes: int,
        streams: Streams | None = None,
        inner: bool = False,
    ) -> None:
        """`admit` says who calls, or raises; health and reflection are open to all. `inner`: the caller is the gateway."""
        log_callers_quietly()
        self._health = HealthApi(operations, SERVICES)
        self._server = grpc.aio.server(options=_options(max_request_bytes))
        handlers = _handlers(operations, streams or EncodedStreams(operations), admit, inner)
        handlers |= _health_handlers(self._health)
        handlers |= _reflection_handlers((*handlers, reflection.SERVICE_NAME))
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(service, methods) for service, methods in handlers.items())
        )

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on `host:port` or `unix:/path`, with TLS if there are credentials; gives the port.

        Raises FailedPrecondition when it cannot be had.
        """
        try:
            if credentials is not None:
                return self._server.add_secure_port(address, credentials)
            return self._server.add_insecure_port(address)
        except RuntimeError:
            raise FailedPrecondition(
                f"cannot listen on {address}: the port is in use or not allowed; stop what holds it, or choose another"
            ) from None

    async def start(self) -> None:
        """Begin to serve."""
        await self._server.start()

    async def stop(self, drain_s: float) -> None:
        """Take no more calls, let those in flight go on for at most `drain_s`, then cancel them."""
        self._health.enter_shutdown()
        await self._server.stop(drain_s)


def _options(max_request_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # else a second server takes the same port and half of the calls
        ("grpc.keepalive_time_ms", 60_000),  # a caller whose machine is gone does not hold a slot
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # callers may ping during a long silent run
    ]


def _handlers(
    operations: Answering, streams: Streams, admit: Admit, inner: bool
) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
    """Service → method → handler, of every operation that is offered here."""
    handlers: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for operation in BY_NAME.values():
        if operation.inner and not inner:
            continue
        if operation.kind in ("events", "chunks"):
            handler = _streaming_handler(partial(streams.stream, operation), admit)
        elif operation.kind == "values":
            handler = _streaming_handler(partial(_values, operation, operations), admit)
        else:
            handler = _unary_handler(partial(_value, operation, operations), admit)
        handlers.setdefault(operation.service, {})[operation.method] = handler
    return handlers


async def _value(operation: Operation, operations: Answering, request: bytes) -> bytes:
    args = await off_the_loop(request, lambda: operation.arguments(parse(operation.message, request)))
    return operation.answered(await answer(operations, operation, *args)).SerializeToString()


async def _values(operation: Operation, operations: Answering, request: bytes) -> AsyncIterator[bytes]:
    start = getattr(operations, operation.call)
    async with closing(start(*operation.arguments(parse(operation.message, request)))) as items:
        async for item in items:
            yield operation.answered(item).SerializeToString()


def _health_handlers(api: HealthApi) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
    async def check(_: object, context: _Context) -> bytes:
        async def answer() -> bytes:
            return await api.check(await _received(context, STRANGER_S), context)

        return await answered(answer(), context)

    async def watch(_: object, context: _Context) -> None:
        async def answers() -> None:
            await api.watch(await _received(context, STRANGER_S), context)

        await answered(answers(), context)

    return {
        health.SERVICE_NAME: {
            "Check": grpc.stream_unary_rpc_method_handler(check),
            "Watch": grpc.stream_stream_rpc_method_handler(watch),
        }
    }


def _reflection_handlers(services: tuple[str, ...]) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
    """grpc's own servicer, behind our reading: its own would answer garbage with INTERNAL, and wait for ever."""
    servicer: Any = reflection.aio.ReflectionServicer(services)  # not annotated

    async def questions(context: _Context) -> AsyncIterator[Any]:
        while (request := await _next(context, STRANGER_S)) is not None:
            yield parse(reflection_pb2.ServerReflectionRequest, request)

    async def reflect(_: object, context: _Context) -> None:
        async def answers() -> None:
            async for found in servicer.ServerReflectionInfo(questions(context), context):
                await write(context, found.SerializeToString())

        await answered(answers(), context)

    return {reflection.SERVICE_NAME: {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(reflect)}}


# A handler is declared as taking a stream, although each call brings one message: grpc reads the whole of a message
# before it calls a unary handler, and so would hold gigabytes for callers who are about to be refused.


def _unary_handler(call: _Call, admit: Admit) -> grpc.RpcMethodHandler[Any, Any]:
    async def admitted(context: _Context) -> bytes:
        CALLER.set(admit(context))  # each call has a task, and so a context, of its own
        return await call(await _received(context, REQUEST_S))

    async def handle(_: object, context: _Context) -> bytes:
        return await answered(admitted(context), context)

    return grpc.stream_unary_rpc_method_handler(handle)


def _streaming_handler(start: _Stream, admit: Admit) -> grpc.RpcMethodHandler[Any, Any]:
    async def pump(context: _Context) -> None:
        CALLER.set(admit(context))
        async with closing(start(await _received(context, REQUEST_S))) as messages:
            async for message in messages:
                await write(context, message)

    async def handle(_: object, context: _Context) -> None:
        await answered(pump(context), context)

    return grpc.stream_stream_rpc_method_handler(handle)


async def _received(context: _Context, within_s: float) -> bytes:
    """The call's message. Until it is asked for, no more of it comes than HTTP/2's window lets through."""
    request = await _next(context, within_s)
    if request is None:
        raise InvalidArgument("the call ended without a request; send one message")
    return request


async def _next(context: _Context, within_s: float) -> bytes | None:
    """A message, or None at the end."""
    try:
        async with asyncio.timeout(within_s):
            request = cast("object", await context.read())  # grpc.aio.EOF at the end
    except TimeoutError:
        raise DeadlineExceeded(f"the request did not arrive within {within_s:g} s") from None
    return request if isinstance(request, bytes) else None
