"""The gRPC face: decodes, calls `Operations`, encodes. Workers and the gateway both serve it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ....protos import probewire_pb2 as pb
from ....protos.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from ....protos.loading import LoadRequest
from ....protos.model import TokenizeRequest
from ....protos.saes import LoadSaeRequest, SaePart
from ....protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ....protos.wire.codec import from_proto, parse, to_proto
from ...auth.access import Access
from ...auth.callers import CALLER, Caller, caller_from_metadata
from ...auth.proxies import FORWARDED_FOR, NO_PROXIES, Proxies, host_of
from ...grpc_answer import answered, log_callers_quietly, write
from ...health import HealthFace
from ...service import Operations, WorkerOperations
from ...streams import EncodedStreams, Streams, closing

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
        return access.enter(dict(given).get("authorization", ""), peer, face="grpc")

    return admit


def admit_from_the_gateway(context: _Context) -> Caller:
    """By what the gateway says, on a socket that nobody else can open."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, bytes)}
    return caller_from_metadata(metadata)


class RpcServer:
    """A gRPC server over some operations. `streams` replaces how their tensor streams become bytes."""

    def __init__(
        self, operations: Operations, admit: Admit, *, max_request_bytes: int, streams: Streams | None = None
    ) -> None:
        """`admit` says who calls, or raises; health and reflection are open to all."""
        log_callers_quietly()
        self._health = HealthFace(operations, SERVICES)
        self._server = grpc.aio.server(options=_options(max_request_bytes))
        handlers = _handlers(operations, streams or EncodedStreams(operations), admit)
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
    operations: Operations, streams: Streams, admit: Admit
) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
    calls = _Calls(operations)

    def _unary(call: _Call) -> grpc.RpcMethodHandler[Any, Any]:
        return _unary_handler(call, admit)

    def _streaming(start: _Stream) -> grpc.RpcMethodHandler[Any, Any]:
        return _streaming_handler(start, admit)

    handlers = {
        "probewire.v1.Models": {
            "List": _unary(calls.models),
            "Load": _streaming(calls.load),
            "Unload": _unary(calls.unload),
            "Describe": _unary(calls.describe),
            "Tokenize": _unary(calls.tokenize),
            "Weights": _streaming(streams.weights),
        },
        "probewire.v1.Inference": {
            "Generate": _streaming(streams.generate),
            "Run": _streaming(streams.run),
            "Gradients": _streaming(streams.gradients),
            "Sweep": _streaming(streams.sweep),
        },
        "probewire.v1.Captures": {
            "Get": _streaming(streams.capture),
            "List": _unary(calls.captures),
            "Delete": _unary(calls.delete_capture),
        },
        "probewire.v1.Saes": {
            "Load": _unary(calls.load_sae),
            "Send": _unary(calls.send_sae),
            "List": _unary(calls.saes),
            "Unload": _unary(calls.unload_sae),
        },
        "probewire.v1.Sessions": {
            "Create": _unary(calls.create_session),
            "Update": _unary(calls.update_session),
            "Get": _unary(calls.session),
            "List": _unary(calls.sessions),
            "Delete": _unary(calls.delete_session),
        },
        "probewire.v1.Activity": {"Get": _unary(calls.activity)},
    }
    if isinstance(operations, WorkerOperations):
        worker = _WorkerCalls(operations)
        handlers["probewire.v1.Worker"] = {
            "PutSession": _unary(worker.put_session),
            "DropSession": _unary(worker.drop_session),
            "Status": _unary(worker.status),
        }
    return handlers


class _Calls:
    """The operations that carry no tensor, from bytes to bytes."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def models(self, request: bytes) -> bytes:
        parse(pb.ListRequest, request)
        return pb.ModelList(models=[to_proto(info) for info in await self._operations.models()]).SerializeToString()

    async def load(self, request: bytes) -> AsyncIterator[bytes]:
        asked = from_proto(LoadRequest, parse(pb.LoadRequest, request))
        async with closing(self._operations.load(asked)) as progress:
            async for step in progress:
                yield to_proto(step).SerializeToString()

    async def unload(self, request: bytes) -> bytes:
        await self._operations.unload(parse(pb.ModelRequest, request).model)
        return pb.Empty().SerializeToString()

    async def describe(self, request: bytes) -> bytes:
        info = await self._operations.describe(parse(pb.ModelRequest, request).model)
        return to_proto(info).SerializeToString()

    async def tokenize(self, request: bytes) -> bytes:
        asked = from_proto(TokenizeRequest, parse(pb.TokenizeRequest, request))
        return to_proto(await self._operations.tokenize(asked)).SerializeToString()

    async def captures(self, request: bytes) -> bytes:
        stored = await self._operations.captures(parse(pb.ModelRequest, request).model)
        return pb.CaptureList(captures=[to_proto(item) for item in stored]).SerializeToString()

    async def delete_capture(self, request: bytes) -> bytes:
        asked = parse(pb.CaptureRequest, request)
        await self._operations.delete_capture(asked.id, asked.model)
        return pb.Empty().SerializeToString()

    async def load_sae(self, request: bytes) -> bytes:
        asked = await asyncio.to_thread(lambda: from_proto(LoadSaeRequest, parse(pb.LoadSaeRequest, request)))
        return to_proto(await self._operations.load_sae(asked)).SerializeToString()

    async def send_sae(self, request: bytes) -> bytes:
        part = await asyncio.to_thread(lambda: from_proto(SaePart, parse(pb.SaePart, request)))
        return to_proto(await self._operations.send_sae(part)).SerializeToString()

    async def saes(self, request: bytes) -> bytes:
        found = await self._operations.saes(parse(pb.ModelRequest, request).model)
        return pb.SaeList(saes=[to_proto(item) for item in found]).SerializeToString()

    async def unload_sae(self, request: bytes) -> bytes:
        asked = parse(pb.SaeRequest, request)
        await self._operations.unload_sae(asked.name, asked.model)
        return pb.Empty().SerializeToString()

    async def create_session(self, request: bytes) -> bytes:
        asked = from_proto(CreateSessionRequest, parse(pb.CreateSessionRequest, request))
        return to_proto(await self._operations.create_session(asked)).SerializeToString()

    async def update_session(self, request: bytes) -> bytes:
        asked = from_proto(UpdateSessionRequest, parse(pb.UpdateSessionRequest, request))
        return to_proto(await self._operations.update_session(asked)).SerializeToString()

    async def session(self, request: bytes) -> bytes:
        return to_proto(await self._operations.session(parse(pb.SessionRequest, request).id)).SerializeToString()

    async def sessions(self, request: bytes) -> bytes:
        parse(pb.ListRequest, request)
        found = await self._operations.sessions()
        return pb.SessionList(sessions=[to_proto(session) for session in found]).SerializeToString()

    async def delete_session(self, request: bytes) -> bytes:
        await self._operations.delete_session(parse(pb.SessionRequest, request).id)
        return pb.Empty().SerializeToString()

    async def activity(self, request: bytes) -> bytes:
        parse(pb.ListRequest, request)
        return to_proto(await self._operations.activity()).SerializeToString()


class _WorkerCalls:
    """What only the gateway asks, and only of a worker."""

    def __init__(self, operations: WorkerOperations) -> None:
        self._operations = operations

    async def put_session(self, request: bytes) -> bytes:
        await self._operations.put_session(from_proto(Session, parse(pb.Session, request)))
        return pb.Empty().SerializeToString()

    async def drop_session(self, request: bytes) -> bytes:
        await self._operations.drop_session(parse(pb.SessionRequest, request).id)
        return pb.Empty().SerializeToString()

    async def status(self, request: bytes) -> bytes:
        parse(pb.ListRequest, request)
        return to_proto(await self._operations.status()).SerializeToString()


def _health_handlers(face: HealthFace) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
    async def check(_: object, context: _Context) -> bytes:
        async def answer() -> bytes:
            return await face.check(await _received(context, STRANGER_S), context)

        return await answered(answer(), context)

    async def watch(_: object, context: _Context) -> None:
        async def answers() -> None:
            await face.watch(await _received(context, STRANGER_S), context)

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
            async for answer in servicer.ServerReflectionInfo(questions(context), context):
                await write(context, answer.SerializeToString())

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
