"""The gRPC API over pretended operations in this process."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from fake_worker import FakeOperations, pattern
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving import GENERATE, Served, drained, eventually, request_bytes, served

from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import Code, FailedPrecondition
from probewire.protos.gradients import GradientsRequest
from probewire.protos.metrics import Logit, Measured, Target
from probewire.protos.model import Event, Finished, Input, Started, TensorFrame, Token
from probewire.protos.spec import Plan
from probewire.protos.sweeps import SweepRequest
from probewire.protos.wire.codec import to_proto
from probewire.protos.wire.events import FrameAssembler, decode_events
from probewire.server.api.grpc.service import RpcServer, admit_from_the_gateway

CHECK = "/grpc.health.v1.Health/Check"


def over_fake(scenario: Callable[[Served], Awaitable[None]]) -> None:
    """Run a scenario against the API over fresh fake operations."""

    async def run() -> None:
        async with asyncio.timeout(60), served(FakeOperations()) as server:
            await scenario(server)

    asyncio.run(run())


def decoded(messages: list[bytes]) -> list[Event]:
    assembler = FrameAssembler()
    return [event for message in messages for event in decode_events(pb.Events.FromString(message), assembler)]


async def status_of(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


def test_a_generation_streams_its_events_in_order() -> None:
    async def scenario(server: Served) -> None:
        events = decoded(await drained(server.generate(n=2, bytes=8)))
        assert [type(event) for event in events] == [Started, Token, TensorFrame, Token, TensorFrame, Finished]

    over_fake(scenario)


MEASURED = GradientsRequest((Input("{}"),), (Target(Logit(1)),))


def swept(n: int, interval_s: float = 0.0) -> bytes:
    """A sweep of n plans, each of which takes a while."""
    inputs = (Input(json.dumps({"interval_s": interval_s})),)
    return to_proto(SweepRequest(inputs, (Target(Logit(1)),), (Plan(),) * n)).SerializeToString()


def test_gradients_and_sweeps_stream_their_events_in_order() -> None:
    async def scenario(server: Served) -> None:
        asked = to_proto(MEASURED).SerializeToString()
        events = decoded(await drained(server.channel.unary_stream("/probewire.v1.Inference/Gradients")(asked)))
        assert [type(event) for event in events] == [Started, Measured, TensorFrame, Finished]
        assert [event.part for event in events if isinstance(event, TensorFrame)] == ["gradient"]
        events = decoded(await drained(server.channel.unary_stream("/probewire.v1.Inference/Sweep")(swept(3))))
        assert [type(event) for event in events] == [Started, Measured, Measured, Measured, Finished]
        assert [event.plans for event in events if isinstance(event, Measured)] == [(0,), (1,), (2,)]

    over_fake(scenario)


def test_a_caller_that_leaves_a_sweep_cancels_it() -> None:
    async def scenario(server: Served) -> None:
        call = server.channel.unary_stream("/probewire.v1.Inference/Sweep")(swept(10_000, 0.01))
        for _ in range(3):
            assert await call.read()
        assert (await server.counts())[:2] == (1, 0)
        call.cancel()

        async def ended() -> bool:
            return (await server.counts())[:2] == (0, 1)

        await eventually(ended, "the sweep is cancelled")
        assert (await server.counts())[2] < 10_000

    over_fake(scenario)


def test_a_large_tensor_travels_in_messages_under_1_mib() -> None:
    async def scenario(server: Served) -> None:
        messages = await drained(server.generate(n=1, bytes=3_000_000))
        assert max(map(len, messages)) <= 1 << 20
        frame = next(event for event in decoded(messages) if isinstance(event, TensorFrame))
        assert frame.tensor.data == pattern(0, 3_000_000)

    over_fake(scenario)


def test_weights_come_in_pieces_and_names_without_data() -> None:
    async def scenario(server: Served) -> None:
        async def chunks(name: str) -> list[pb.WeightChunk]:
            request = pb.WeightsRequest(name=name).SerializeToString()
            messages = await drained(server.channel.unary_stream("/probewire.v1.Models/Weights")(request))
            return [pb.WeightChunk.FromString(message) for message in messages]

        assert {chunk.name: tuple(chunk.shape) for chunk in await chunks("")} == {"w": (1024, 600), "empty": (0,)}
        pieces = await chunks("w")
        assert len(pieces) == 3
        assert b"".join(piece.data for piece in pieces) == bytes(1024 * 600 * 4)
        assert [len(piece.data) for piece in await chunks("empty")] == [0]

    over_fake(scenario)


def test_a_stored_capture_comes_as_one_frame_of_its_own_shape() -> None:
    async def scenario(server: Served) -> None:
        request = pb.CaptureRequest(id="c1").SerializeToString()
        (frame,) = decoded(await drained(server.channel.unary_stream("/probewire.v1.Captures/Get")(request)))
        assert isinstance(frame, TensorFrame)
        assert (frame.id, frame.sites, frame.tensor.shape) == ("c1", ("resid_post.0",), (2, 3))

    over_fake(scenario)


@pytest.mark.parametrize("code", list(Code))
def test_every_error_keeps_its_code_message_and_hint(code: Code) -> None:
    async def scenario(server: Served) -> None:
        error = await status_of(drained(server.generate(fail=code.name)))
        assert error.code().value[0] == code.value.grpc
        assert error.details() == "as you asked"
        trailers = dict(error.trailing_metadata() or ())
        assert (trailers["retry-after-s"], trailers["probewire-code"]) == ("7", code.name)

    over_fake(scenario)


def test_a_bug_is_internal_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: Served) -> None:
        error = await status_of(drained(server.generate(fail="bug")))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (error.details() or "")
        error_id = (error.details() or "").split()[2].rstrip(";")
        assert error_id in caplog.text
        assert "RuntimeError: secret" in caplog.text
        assert await drained(server.generate())

    with caplog.at_level(logging.ERROR):
        over_fake(scenario)


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("Models/List", pb.ListRequest),
        ("Models/Unload", pb.ModelRequest),
        ("Models/Describe", pb.ModelRequest),
        ("Models/Tokenize", pb.TokenizeRequest),
        ("Models/Tokenizer", pb.ModelRequest),
        ("Captures/List", pb.ModelRequest),
        ("Captures/Delete", pb.CaptureRequest),
        ("Models/Load", pb.LoadRequest),
        ("Models/Weights", pb.WeightsRequest),
        ("Inference/Generate", pb.GenerateRequest),
        ("Inference/Run", pb.RunRequest),
        ("Inference/Gradients", pb.GradientsRequest),
        ("Inference/Sweep", pb.SweepRequest),
        ("Captures/Get", pb.CaptureRequest),
    ],
)
@pytest.mark.parametrize("data", [b"\xfa\x3e\x01x", b"\xff\xff\xff"], ids=["unknown field", "garbage"])
def test_what_the_contract_does_not_know_is_refused(method: str, request_type: type[Message], data: bytes) -> None:
    async def scenario(server: Served) -> None:
        path = f"/probewire.v1.{method}"
        if method in {"Models/Load", "Models/Weights", "Captures/Get"} or method.startswith("Inference/"):
            error = await status_of(drained(server.channel.unary_stream(path)(data)))
        else:
            error = await status_of(server.unary(path, data))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert request_type.DESCRIPTOR.name in (error.details() or "")

    over_fake(scenario)


def test_a_request_that_is_too_large_is_refused_and_the_next_is_served() -> None:
    async def scenario(server: Served) -> None:
        error = await status_of(drained(server.generate(padding="x" * (1 << 20))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "1048576" in (error.details() or "")
        assert await drained(server.generate())

    over_fake(scenario)


def test_a_caller_that_leaves_cancels_the_request() -> None:
    async def scenario(server: Served) -> None:
        call = server.generate(n=10_000, interval_s=0.01)
        await call.read()
        assert (await server.counts())[:2] == (1, 0)
        call.cancel()

        async def gone() -> bool:
            return (await server.counts())[:2] == (0, 1)

        await eventually(gone, "the request was cancelled")

    over_fake(scenario)


def test_a_deadline_that_passes_cancels_the_request() -> None:
    async def scenario(server: Served) -> None:
        call = server.channel.unary_stream(GENERATE)(request_bytes(n=10_000, interval_s=0.01), timeout=0.3)
        error = await status_of(drained(call))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        async def gone() -> bool:
            return (await server.counts())[:2] == (0, 1)

        await eventually(gone, "the request was cancelled")

    over_fake(scenario)


def test_reflection_lists_the_services_and_describes_them() -> None:
    async def scenario(server: Served) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="probewire.v1.Inference"),
        ]
        listed, described = [answer async for answer in cast("Any", stub.ServerReflectionInfo)(iter(asked))]
        assert {service.name for service in listed.list_services_response.service} == {
            "probewire.v1.Models",
            "probewire.v1.Sessions",
            "probewire.v1.Variants",
            "probewire.v1.Activity",
            "probewire.v1.Inference",
            "probewire.v1.Captures",
            "probewire.v1.Saes",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        assert described.file_descriptor_response.file_descriptor_proto

    over_fake(scenario)


@pytest.mark.parametrize("service", ["", "probewire.v1.Inference", "fake"])
def test_health_serves_for_the_whole_a_service_and_a_model(service: str) -> None:
    async def scenario(server: Served) -> None:
        call = server.channel.unary_unary(CHECK)(health_pb2.HealthCheckRequest(service=service).SerializeToString())
        answer = health_pb2.HealthCheckResponse.FromString(await call)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        trailers = dict(await call.trailing_metadata())
        assert b"a forward took 0 ms" in cast("bytes", trailers["health-report-bin"])

    over_fake(scenario)


def test_health_of_an_unknown_service_is_not_found_and_names_the_models() -> None:
    async def scenario(server: Served) -> None:
        request = health_pb2.HealthCheckRequest(service="nobody").SerializeToString()
        error = await status_of(server.unary(CHECK, request))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "models: fake" in (error.details() or "")

    over_fake(scenario)


def test_a_port_in_use_is_refused() -> None:
    async def scenario(server: Served) -> None:
        second = RpcServer(FakeOperations(), admit_from_the_gateway, max_request_bytes=1 << 20)
        with pytest.raises(FailedPrecondition, match=f"cannot listen on 127.0.0.1:{server.port}"):
            second.bind(f"127.0.0.1:{server.port}")

    over_fake(scenario)
