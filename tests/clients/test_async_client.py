"""AsyncClient does what Client does, over every transport, and whoever is cancelled leaves nothing running."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from fake_server import FakeServer, wait_for
from fake_service import FakeService, expected

from probewire.clients import (
    AsyncClient,
    AsyncStream,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Unavailable,
    capture,
    steer,
)
from probewire.protos.errors import Code, error_from_code
from probewire.protos.model import Event, RunRequest

UP = np.array([1.0, 0, 0, 0], np.float32)

Connect = Callable[[], AsyncClient]


@pytest.fixture(params=["inprocess", "grpc", "rest"])
def connect(request: pytest.FixtureRequest, server: FakeServer, service: FakeService) -> Connect:
    """Makes a client over each transport in turn."""
    if request.param == "inprocess":
        return lambda: AsyncClient(service=service)
    return lambda: AsyncClient(server.grpc_url if request.param == "grpc" else server.http_url, timeout_s=20)


def in_loop(connect: Connect, work: Callable[[AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
    """Do it with a client, in an event loop."""

    async def main() -> Any:
        async with connect() as client:
            return await asyncio.wait_for(work(client), 30)

    return asyncio.run(main())


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_it_has_every_method_of_client_with_the_same_signature() -> None:
    assert public(AsyncClient) == public(Client)
    for name in [*public(Client), "__init__"]:
        mine, other = getattr(AsyncClient, name), getattr(Client, name)
        if isinstance(other, property):
            assert isinstance(mine, property), name
        else:
            assert _asked(mine) == _asked(other), name


def _asked(method: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())


def test_results_are_those_of_client(connect: Connect, service: FakeService) -> None:
    client = Client(service=service)

    async def work(mine: AsyncClient) -> None:
        made = await mine.generate_with_activations("abc", ["resid_post.*"], max_new_tokens=3, hooks=steer("embed", UP))
        assert made.text == client.generate("abc", max_new_tokens=3, hooks=steer("embed", UP)).text
        np.testing.assert_array_equal(made["resid_post.2"], expected("resid_post.2", [97, 98, 99, 101, 103]))
        again = await mine.repeat(made)
        assert again.tokens == made.tokens
        many = await mine.run(["ab"] * 70, capture="embed", progress=False)  # two requests
        assert len(many.inputs) == 70
        assert (await mine.weights("big.weight", progress=False)).shape == (1500, 1000)
        assert await mine.token("a") == client.token("a")
        assert await mine.weight_names() == client.weight_names()
        assert (await mine.describe()).id == (await mine.load("fake", progress=False)).id == "fake"
        assert await mine.health() == client.health()
        [kept] = (await mine.run("ab", capture=capture("embed", store=True))).stored
        np.testing.assert_array_equal(await mine.capture(kept.id), expected("embed", [97, 98]))
        await mine.delete_capture(kept.id)
        assert await mine.captures() == []

    in_loop(connect, work)


def test_every_error_comes_back_as_itself(connect: Connect) -> None:
    """A server's CANCELLED is not the CancelledError of a task."""

    async def work(client: AsyncClient) -> None:
        for code in Code:
            with pytest.raises(type(error_from_code(code, "")), match=f"told to fail with {code.name}"):
                await client.generate(f"fail:{code.name}")
            with pytest.raises(type(error_from_code(code, "")), match=f"told to fail with {code.name}"):
                await client.stream(f"fail:{code.name}")
        with pytest.raises(NotFound, match="no weight 'nope'"):
            await client.weights("nope")
        with pytest.raises(NotFound, match="no model 'other'"):
            await client.describe("other")

    in_loop(connect, work)


def test_a_stream_gives_steps_and_becomes_a_result(connect: Connect) -> None:
    async def work(client: AsyncClient) -> None:
        async with client.stream("abc", capture="resid_post.1", max_new_tokens=3) as stream:
            assert stream.started.model == "fake"
            steps = [step async for step in stream]
        assert [step.text for step in steps] == ["d", "e", "f"]
        assert [step.positions("resid_post.1") for step in steps] == [(0, 1, 2), (3,), (4,)]
        assert (stream.result.text, stream.result["resid_post.1"].shape) == ("def", (5, 4))
        later = client.stream("abc", max_new_tokens=2)
        with pytest.raises(FailedPrecondition, match="has not begun; await it"):
            _ = later.started
        assert await later is later
        assert [step.text async for step in later] == ["d", "e"]

    in_loop(connect, work)


def test_no_call_waits_for_another_in_the_client(connect: Connect) -> None:
    """httpx by itself has 100 connections at most, and the rest wait where no server knows of them."""

    async def work(client: AsyncClient) -> None:
        async def begin() -> AsyncStream:
            return await client.stream("a", max_new_tokens=2)

        streams = await asyncio.gather(*(begin() for _ in range(110)))
        assert [await _rest(stream) for stream in streams] == [["b", "c"]] * 110

    in_loop(connect, work)


def ends(service: FakeService) -> bool:
    """Whether a stream was closed on the server before its end."""
    ended = wait_for(service.cancelled.is_set)
    service.cancelled = threading.Event()
    return ended


@asynccontextmanager
async def begun(client: AsyncClient) -> AsyncGenerator[AsyncStream]:
    """A long stream that has given a step."""
    async with client.stream("a", max_new_tokens=500) as stream:
        assert (await anext(stream)).text == "b"
        yield stream


def test_whoever_leaves_a_stream_ends_it_on_the_server(connect: Connect, service: FakeService) -> None:
    service.step_s = 0.02

    async def work(client: AsyncClient) -> None:
        async with begun(client):
            pass
        assert await asyncio.to_thread(ends, service)
        async for _ in client.stream("a", max_new_tokens=500):
            break  # forgotten, as in a plain loop
        assert await asyncio.to_thread(ends, service)
        async with begun(client) as stream:
            reading = asyncio.ensure_future(_rest(stream))
            await anext(stream)  # they take turns
            await stream.close()
            assert len(await reading) < 400, "who waits for the next step finds the stream ended"
            assert stream.finished == {}
        assert await asyncio.to_thread(ends, service)
        assert (await client.generate("a", max_new_tokens=1)).text == "b", "the connection serves the next"

    in_loop(connect, work)


async def _rest(stream: AsyncStream) -> list[str]:
    return [step.text async for step in stream]


@pytest.mark.parametrize("reads", [False, True])
def test_a_cancelled_task_ends_its_call_on_the_server(connect: Connect, service: FakeService, reads: bool) -> None:
    begun, service.step_s = threading.Event(), 0.02
    service.before_step = lambda _: begun.set()

    async def work(client: AsyncClient) -> None:
        call = _rest(client.stream("a", max_new_tokens=500)) if reads else client.generate("a", max_new_tokens=500)
        task = asyncio.ensure_future(call)
        assert await asyncio.to_thread(begun.wait, 20)  # the loop goes on meanwhile
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ends, service)
        assert (await client.generate("a", max_new_tokens=1)).text == "b"

    in_loop(connect, work)


def test_what_a_cancelled_call_has_stored_is_deleted(
    connect: Connect, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go_on, run = threading.Event(), threading.Event(), service.run

    def standing_still(request: RunRequest) -> Iterator[Event]:
        if service.stored:  # by the first of two requests
            waiting.set()
            go_on.wait(20)
        yield from run(request)

    monkeypatch.setattr(service, "run", standing_still)

    async def work(client: AsyncClient) -> None:
        task = asyncio.ensure_future(client.run(["a"] * 70, capture=capture("embed", store=True), progress=False))
        assert await asyncio.to_thread(waiting.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.stored == {}, "nobody would have their ids"
        go_on.set()

    try:
        in_loop(connect, work)
    finally:
        go_on.set()


def at(step: int, action: Callable[[], object]) -> Callable[[int], None]:
    """What the fake calls before each step: does something before one of them."""

    def before_step(index: int) -> None:
        if index == step:
            action()

    return before_step


def test_sessions(connect: Connect, service: FakeService) -> None:
    client = Client(service=service)

    async def work(mine: AsyncClient) -> None:
        async with mine.session([steer("resid_post.1", UP, 2)], name="calm") as live:
            service.before_step = at(2, lambda: client.get_session(live.id).update([]))
            async with mine.stream("a", session=live, max_new_tokens=4) as stream:
                steps = [(step.text, step.revision) async for step in stream]
            assert steps == [("d", 1), ("g", 1), ("h", 2), ("i", 2)]
            with pytest.raises(FailedPrecondition):
                await live.update([])
            assert (await live.refresh()).revision == 2
            assert (await live.update([])).revision == 3
            assert [found.id for found in await mine.sessions()] == [live.id]
        assert await mine.sessions() == []
        kept = await mine.session()
        assert repr(await mine.get_session(kept.id)).startswith("AsyncLiveSession(id=")
        await kept.delete()
        with pytest.raises(NotFound):
            await kept.refresh()

    in_loop(connect, work)


@pytest.mark.parametrize("api", ["grpc", "rest"])
def test_deadlines_and_connections(server: FakeServer, service: FakeService, api: str) -> None:
    url = server.grpc_url if api == "grpc" else server.http_url
    service.step_s = 0.2

    async def late(client: AsyncClient) -> None:
        with pytest.raises(DeadlineExceeded, match=r"timeout_s=0\.5"):
            await client.generate("a", max_new_tokens=50)

    in_loop(lambda: AsyncClient(url, timeout_s=0.5), late)
    assert ends(service)

    async def alone(client: AsyncClient) -> None:
        with pytest.raises(Unavailable, match="probewire serve"):
            await client.models()

    in_loop(lambda: AsyncClient(f"{url.split(':')[0]}://127.0.0.1:1"), alone)


@pytest.mark.parametrize("api", ["grpc", "rest"])
def test_a_connection_belongs_to_its_loop_and_ends_with_close(
    server: FakeServer, service: FakeService, api: str
) -> None:
    client, service.step_s = AsyncClient(server.grpc_url if api == "grpc" else server.http_url, timeout_s=20), 0.02

    async def closed_meanwhile() -> None:
        async with begun(client) as stream:
            reading = asyncio.ensure_future(_rest(stream))
            with pytest.raises(FailedPrecondition, match="used in another event loop before"):
                await asyncio.to_thread(asyncio.run, client.models())
            await client.close()
            with pytest.raises(FailedPrecondition, match="is closed; make a new AsyncClient"):
                await reading

    asyncio.run(closed_meanwhile())
    with pytest.raises(FailedPrecondition, match="is closed; make a new AsyncClient"):
        asyncio.run(client.models())
