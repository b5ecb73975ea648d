"""The gateway over real worker processes that hold pretended models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

import grpc
import numpy as np
import pytest
from fake_worker import FakeOperations, pattern
from serving import Served, broken, drained, eventually, gateway, loaded, request_bytes

from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound, ProbewireError
from probewire.protos.loading import LoadProgress, LoadRequest
from probewire.protos.model import (
    Finished,
    GenerateRequest,
    Input,
    RunRequest,
    Sampling,
    Started,
    TensorFrame,
    TokenizeRequest,
)
from probewire.protos.operations import BY_CALL
from probewire.server.gateway.gateway import Gateway
from probewire.server.gateway.process import WorkerProcess
from probewire.server.state.captures import Kept
from probewire.server.streams import EncodedStreams

Scenario = Callable[[Gateway, Served], Awaitable[None]]


def over_gateway(scenario: Scenario, *models: str) -> None:
    """Run a scenario against a gateway with a worker a model."""

    async def run() -> None:
        async with asyncio.timeout(60), gateway(*models) as (it, server):
            await scenario(it, server)

    asyncio.run(run())


async def error_of(call: Awaitable[object]) -> ProbewireError:
    with pytest.raises(ProbewireError) as raised:
        await call
    return raised.value


def test_what_passes_through_is_bit_identical_and_decodes_the_same() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        request = request_bytes(n=4, bytes=2_500_000)
        through = await drained(server.generate(n=4, bytes=2_500_000))
        direct = [
            message async for message in EncodedStreams(FakeOperations("fake")).stream(BY_CALL["generate"], request)
        ]
        assert through == direct
        asked = GenerateRequest((Input('{"bytes": 2500000}'),), sampling=Sampling(max_new_tokens=4))
        events = [event async for events in it.generate(asked) for event in events]
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        frames = [event for event in events if isinstance(event, TensorFrame)]
        assert [frame.tensor.data for frame in frames] == [pattern(index, 2_500_000) for index in range(4)]

    over_gateway(scenario, "fake")


def test_every_other_operation_reaches_the_worker() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        assert [info.id for info in await it.models()] == ["fake"]
        assert (await it.describe("")).d_model == 8
        assert (await it.tokenize(TokenizeRequest(Input("hi")))).text == "hi"
        assert await it.weight_names("") == {"w": (1024, 600), "empty": (0,)}
        assert (await it.weights("w", "fake")).data == bytes(1024 * 600 * 4)
        runs = [event async for events in it.run(RunRequest((Input("hi"),))) for event in events]
        assert isinstance(runs[-1], Finished)

    over_gateway(scenario, "fake")


def test_stored_captures_are_the_gateways_and_each_their_owners() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        stored = it.store.put("local", Kept("fake", "resid_post.0", "input", (0, 1), np.ones((2, 8), np.float32)))
        other = it.store.put("ada", Kept("fake", "resid_post.0", "input", (0,), np.ones((1, 8), np.float32)))
        assert await it.captures("") == await it.captures("fake") == [stored]
        assert (await it.capture(stored.id, ""))[1].numpy().shape == (2, 8)
        for missing in (other.id, "c9", "../state"):
            assert isinstance(await error_of(it.capture(missing, "")), NotFound)
            assert isinstance(await error_of(it.delete_capture(missing, "")), NotFound)
        await it.delete_capture(stored.id, "")
        assert await it.captures("") == []

    over_gateway(scenario)


def test_an_error_in_the_worker_arrives_unchanged() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        error = await broken(server.generate(fail="RESOURCE_EXHAUSTED"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "as you asked"
        assert dict(error.trailing_metadata() or ())["retry-after-s"] == "7"

    over_gateway(scenario, "fake")


@pytest.mark.parametrize("path", ["Inference/Generate", "Inference/Run", "Models/Weights", "Captures/Get"])
def test_unknown_fields_are_refused_at_the_door(path: str) -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        error = await broken(server.channel.unary_stream(f"/probewire.v1.{path}")(b"\xfa\x3e\x01x"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "unknown field numbers [1007]" in (error.details() or "")

    over_gateway(scenario)


def test_a_caller_that_leaves_cancels_the_request_in_the_worker() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        call = server.generate(n=10_000, interval_s=0.01, bytes=1000)
        await call.read()
        assert (await server.counts())[:2] == (1, 0)
        call.cancel()

        async def gone() -> bool:
            return (await server.counts())[:2] == (0, 1)

        await eventually(gone, "the request was cancelled in the worker")

    over_gateway(scenario, "fake")


def test_a_decoded_stream_that_is_closed_cancels_the_request_in_the_worker() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        asked = GenerateRequest((Input('{"interval_s": 0.01}'),), sampling=Sampling(max_new_tokens=10_000))
        events = it.generate(asked)
        await anext(events)
        await events.aclose()  # pyright: ignore[reportAttributeAccessIssue]  it is an async generator

        async def gone() -> bool:
            return (await server.counts())[:2] == (0, 1)

        await eventually(gone, "the request was cancelled in the worker")

    over_gateway(scenario, "fake")


def test_a_reader_that_stops_reading_is_held_back_alone() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        stalled = server.generate(n=1000, bytes=500_000)
        await stalled.read()
        last = -1

        async def still() -> bool:
            nonlocal last
            before, last = last, (await server.counts())[2]
            await asyncio.sleep(0.2)
            return last == before

        await eventually(still, "the stalled stream makes no more steps")
        assert last < 100  # 50 MB at most lie in the windows and buffers of both connections
        assert len(await drained(server.generate(n=20, bytes=500_000))) > 10
        assert len(await drained(stalled)) >= 500

    over_gateway(scenario, "fake")


def test_the_model_may_be_left_out_only_when_there_is_one() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        nothing = await error_of(it.describe(""))
        assert isinstance(nothing, FailedPrecondition)
        assert "load one first" in nothing.message
        assert not (await it.health()).ready
        await asyncio.gather(loaded(it, "a"), loaded(it, "b"))
        several = await error_of(it.tokenize(TokenizeRequest(Input("hi"))))
        assert isinstance(several, InvalidArgument)
        assert several.message.endswith("must name one of: a, b")
        unknown = await error_of(it.describe("c"))
        assert isinstance(unknown, NotFound)
        assert "loaded: a, b" in unknown.message
        assert await drained(server.generate("b"))
        assert (await it.health()).models == {"a": "ready", "b": "ready"}
        await it.unload("a")
        assert (await it.describe("")).id == "b"

    over_gateway(scenario)


def test_a_load_tells_how_it_goes_and_ends_with_the_info() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        steps = await loaded(it, "fake")
        assert steps[0].stage == "starting"
        assert LoadProgress("read weights", 2, 2) in steps
        info = steps[-1].info
        assert info is not None
        assert info.id == "fake"

    over_gateway(scenario)


def test_loading_what_is_loaded_joins_it_and_another_model_under_its_id_is_refused() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        first, second = await asyncio.gather(loaded(it, "fake"), loaded(it, "fake"))
        assert first[-1] == second[-1]
        pid = it.workers["fake"].pid
        (again,) = await loaded(it, "fake")
        assert again.info == first[-1].info
        assert it.workers["fake"].pid == pid

        async def other() -> None:
            async for _ in it.load(LoadRequest("other", id="fake")):
                pass

        error = await error_of(other())
        assert isinstance(error, FailedPrecondition)
        assert "id 'fake' is taken by 'fake'" in error.message

    over_gateway(scenario)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (LoadRequest("m", dtype="int8"), "unknown dtype 'int8'; allowed: auto, float32"),
        (LoadRequest("m", backend="jax"), "unknown backend 'jax'; allowed: auto, torch, mlx"),
        (LoadRequest("m", id="a\nb"), "printable"),
    ],
)
def test_a_bad_load_is_refused_before_a_process_starts(request_: LoadRequest, message: str) -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        async def load() -> None:
            async for _ in it.load(request_):
                pass

        error = await error_of(load())
        assert isinstance(error, InvalidArgument)
        assert message in error.message
        assert it.workers == {}

    over_gateway(scenario)


def test_a_folder_that_cannot_be_one_is_refused_before_a_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    monkeypatch.setattr(WorkerProcess, "start", mock.Mock(side_effect=AssertionError))

    async def scenario(it: Gateway, server: Served) -> None:
        error = await error_of(loaded(it, str(tmp_path)))
        assert isinstance(error, InvalidArgument)
        assert "model.safetensors is not a safetensors file (1 bytes)" in error.message
        assert it.workers == {}

    over_gateway(scenario)


def test_a_model_that_cannot_load_says_why_and_leaves_nothing_behind() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        broken = await error_of(loaded(it, "fake/broken"))
        assert isinstance(broken, InvalidArgument)
        assert broken.message == "config.json is no model's"
        bug = await error_of(loaded(it, "fake/bug"))
        assert bug.message == "loading 'fake/bug' failed: RuntimeError: out of memory"
        assert it.workers == {}

    over_gateway(scenario)
