"""gRPC's health service over a real connection: the server, its services and its models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import orjson
import pytest
from grpc_health.v1 import health_pb2

from probewire.protos.errors import NotFound
from probewire.protos.loading import HealthReport
from probewire.protos.wire.codec import to_json
from probewire.server import health as module
from probewire.server.grpc_answer import answered
from probewire.server.grpc_status import as_error
from probewire.server.health import REPORT_KEY, HealthApi, report_of

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
MODELS = {
    "good": "ready",
    "idle": "asleep since a minute; the next request wakes it",
    "bad": "restarting: the worker was killed",
}


class Told:
    """Operations that report what they are told to."""

    def __init__(self) -> None:
        self.report = HealthReport(True, "a forward ran", MODELS)

    async def health(self) -> HealthReport:
        return self.report


class Box:
    """A health service and a channel to it."""

    def __init__(self) -> None:
        self.operations = Told()
        self.api = HealthApi(self.operations, ("probewire.v1.Inference",))
        self.channel: grpc.aio.Channel

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Box]:
        async def check(request: bytes, context: Any) -> bytes:
            return await answered(self.api.check(request, context), context)

        server = grpc.aio.server()
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "Watch": grpc.unary_stream_rpc_method_handler(self.api.watch),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("h", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as self.channel:
            yield self
        await server.stop(0)

    async def check(self, service: str = "") -> tuple[int, HealthReport]:
        call = self.channel.unary_unary("/h/Check")(asked(service))
        answer = await call
        trailing = dict(await call.trailing_metadata())
        return health_pb2.HealthCheckResponse.FromString(answer).status, report_of(answer, trailing.get)

    async def watched(self, service: str) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        return self.channel.unary_stream("/h/Watch")(asked(service))


def asked(service: str) -> bytes:
    return health_pb2.HealthCheckRequest(service=service).SerializeToString()


async def status(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> int:
    message = await call.read()
    assert isinstance(message, bytes)
    return health_pb2.HealthCheckResponse.FromString(message).status


@pytest.mark.parametrize(
    ("service", "ready", "expected"),
    [
        ("", True, SERVING),
        ("", False, NOT_SERVING),
        ("probewire.v1.Inference", True, SERVING),
        ("probewire.v1.Inference", False, NOT_SERVING),
        ("good", False, SERVING),
        ("idle", False, SERVING),
        ("bad", True, NOT_SERVING),
    ],
)
def test_a_name_stands_for_the_server_or_for_one_model(service: str, ready: bool, expected: int) -> None:
    async def scenario() -> None:
        async with Box().running() as box:
            box.operations.report = HealthReport(ready, "x", MODELS)
            assert (await box.check(service))[0] == expected

    asyncio.run(scenario())


def test_the_whole_report_travels_behind_the_answer() -> None:
    async def scenario() -> None:
        async with Box().running() as box:
            box.operations.report = HealthReport(False, "“bad” did not run", MODELS)
            assert (await box.check())[1] == box.operations.report

    asyncio.run(scenario())


def test_a_name_of_nothing_is_not_found_with_what_there_is() -> None:
    async def told(box: Box) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await box.check("other")
        error = as_error(caught.value)
        assert isinstance(error, NotFound)
        return error.message

    async def scenario() -> None:
        async with Box().running() as box:
            assert await told(box) == "no service or model 'other'; models: good, idle, bad"
            box.operations.report = HealthReport(True, "x")
            assert (await told(box)).endswith("models: none loaded")

    asyncio.run(scenario())


def test_a_server_that_shuts_down_serves_nobody_new() -> None:
    async def scenario() -> None:
        async with Box().running() as box:
            box.api.enter_shutdown()
            for service in ("", "good", "probewire.v1.Inference"):
                assert (await box.check(service))[0] == NOT_SERVING

    asyncio.run(scenario())


def test_a_watcher_is_told_now_and_of_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_INTERVAL_S", 0.005)

    async def scenario() -> None:
        async with asyncio.timeout(20), Box().running() as box:
            call = await box.watched("m")
            assert await status(call) == UNKNOWN, "it may be loaded later"
            for state, expected in (("ready", SERVING), ("failed", NOT_SERVING), ("asleep for a minute", SERVING)):
                box.operations.report = HealthReport(True, "x", {"m": state})
                assert await status(call) == expected
            box.api.enter_shutdown()
            assert await status(call) == NOT_SERVING
            call.cancel()

    asyncio.run(scenario())


def test_a_watcher_is_told_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_INTERVAL_S", 0.0)
    sent: list[bytes] = []

    class Context:
        async def write(self, message: bytes) -> None:
            sent.append(message)

    class Counting(Told):
        n = 0

        async def health(self) -> HealthReport:
            self.n += 1
            if self.n == 20:
                raise NotFound("enough")
            return HealthReport(self.n < 10, str(self.n))

    context: Any = Context()
    with pytest.raises(NotFound, match="enough"):
        asyncio.run(HealthApi(Counting(), ()).watch(asked(""), context))
    assert [health_pb2.HealthCheckResponse.FromString(data).status for data in sent] == [SERVING, NOT_SERVING]


def test_a_report_is_read_or_made_of_the_bare_status() -> None:
    report = HealthReport(False, "why", {"m": "failed"})
    data = {REPORT_KEY: orjson.dumps(to_json(report))}
    answer = health_pb2.HealthCheckResponse(status=SERVING).SerializeToString()
    assert report_of(answer, data.get) == report
    assert report_of(answer, {}.get) == HealthReport(True, "ready")
    answer = health_pb2.HealthCheckResponse(status=NOT_SERVING).SerializeToString()
    assert report_of(answer, {}.get) == HealthReport(False, "not serving")
