"""A request's events tied to the caller's connection: who leaves cancels, who stays is told how it ended."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import pytest
from fastapi import Request

from probewire.protos.errors import Cancelled, Internal, NotFound, ProbewireError
from probewire.protos.model import Event, Finished, Input, TensorFrame, Token, Usage
from probewire.protos.tensors import Tensor
from probewire.server.api.http.body import BIG_BYTES
from probewire.server.api.http.stream import (
    CompletenessCheck,
    StreamResponse,
    begun,
    gathered,
    step_bytes,
    unless_gone,
)

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "GET",
    "path": "/x",
    "headers": [],
    "query_string": b"",
    "state": {"request_id": "req-1"},
}


class Source:
    """A stream that says what became of it."""

    def __init__(self, *items: Any, hang: bool = False) -> None:
        self.items, self.hang = list(items), hang
        self.state = "not begun"

    async def __call__(self) -> AsyncIterator[Any]:
        self.state = "running"
        try:
            for item in self.items:
                if isinstance(item, Exception):
                    raise item
                yield item
            if self.hang:
                await asyncio.Event().wait()
            self.state = "whole"
        except (GeneratorExit, asyncio.CancelledError):
            self.state = "cancelled"
            raise


class Lines:
    """Items as text; where each was encoded is noted."""

    media_type = "text/plain"

    def __init__(self) -> None:
        self.threads: list[int] = []

    def item(self, item: str) -> list[bytes]:
        self.threads.append(threading.get_ident())
        return [item.encode(), b";"]

    def error(self, error: ProbewireError, request_id: str) -> bytes:
        return f"!{error.code.name} {error.message} {request_id}".encode()

    def end(self) -> bytes:
        return b"."


async def stays() -> dict[str, Any]:
    """A caller who has sent all and waits."""
    await asyncio.Event().wait()
    return {}


async def leaves() -> dict[str, Any]:
    """A caller who leaves once the others have had their turn."""
    for _ in range(5):
        await asyncio.sleep(0)
    return {"type": "http.disconnect"}


def request(receive: Callable[[], Awaitable[dict[str, Any]]] = stays) -> Request:
    return Request(SCOPE, receive)


# ---- unless_gone -----------------------------------------------------------------------------------------------------


def test_work_comes_to_what_it_returns() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert asyncio.run(unless_gone(stays, work())) == 7


def test_a_caller_who_leaves_cancels_the_work() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    with pytest.raises(Cancelled, match="the caller disconnected"):
        asyncio.run(unless_gone(leaves, work()))
    assert ended == ["cancelled"]


def test_what_is_still_sent_is_no_leaving() -> None:
    messages = [{"type": "http.request", "body": b"x", "more_body": True}] * 3

    async def scenario() -> str:
        read = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            read.set()
            return await stays()

        async def work() -> str:
            await read.wait()
            return "done"

        return await unless_gone(receive, work())

    assert asyncio.run(scenario()) == "done"


def test_work_that_is_done_when_the_caller_leaves_counts() -> None:
    async def at_once() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def work() -> str:
        return "done"

    assert asyncio.run(unless_gone(at_once, work())) == "done"


def test_what_work_raises_is_raised() -> None:
    async def work() -> None:
        raise NotFound("no such thing")

    with pytest.raises(NotFound, match="no such thing"):
        asyncio.run(unless_gone(stays, work()))


def test_nothing_is_left_running_when_the_request_itself_is_cancelled() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    async def scenario() -> int:
        task = asyncio.create_task(unless_gone(stays, work()))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    assert asyncio.run(scenario()) == 1, "the scenario's own"
    assert ended == ["work"]


# ---- gathered and begun ----------------------------------------------------------------------------------------------


def test_a_stream_is_gathered_whole() -> None:
    source = Source(1, 2, 3)
    assert asyncio.run(gathered(request(), source())) == [1, 2, 3]
    assert source.state == "whole"


def test_a_stream_whose_reader_leaves_is_cancelled() -> None:
    source = Source(1, hang=True)
    with pytest.raises(Cancelled):
        asyncio.run(gathered(request(leaves), source()))
    assert source.state == "cancelled"


def test_begun_waits_for_the_first_and_loses_none() -> None:
    async def scenario() -> tuple[str, list[int]]:
        source = Source(1, 2, 3)
        stream = await begun(request(), source())
        return source.state, [item async for item in stream]

    assert asyncio.run(scenario()) == ("running", [1, 2, 3])


def test_a_refusal_is_raised_before_anything_is_begun() -> None:
    with pytest.raises(NotFound, match="no model"):
        asyncio.run(begun(request(), Source(NotFound("no model"))()))


def test_a_stream_without_a_single_item_is_a_fault() -> None:
    with pytest.raises(Internal, match="ended without a single event"):
        asyncio.run(begun(request(), Source()()))


def test_who_leaves_before_the_first_item_cancels_the_stream() -> None:
    source = Source(hang=True)
    with pytest.raises(Cancelled):
        asyncio.run(begun(request(leaves), source()))
    assert source.state == "cancelled"


def test_a_begun_stream_can_be_closed_before_it_is_read() -> None:
    async def scenario() -> str:
        source = Source(1, hang=True)
        stream: Any = await begun(request(), source())
        await stream.aclose()
        return source.state

    assert asyncio.run(scenario()) == "cancelled"


# ---- CompletenessCheck -----------------------------------------------------------------------------------------------


def finished(name: str) -> Finished:
    return Finished(name, "run", Usage(1))


async def checked(batches: Iterable[list[Event]], *inputs: Input) -> list[list[Event]]:
    return [events async for events in CompletenessCheck(Source(*batches)(), inputs)]


def test_an_answer_in_which_every_input_finished_passes_untouched() -> None:
    batches: list[list[Event]] = [[finished("b"), Token("a", 0, 1, "x")], [], [finished("a")]]
    inputs = (Input("x", name="a"), Input("x", name="b"), Input("x", name="c", source_only=True))
    assert asyncio.run(checked(batches, *inputs)) == batches


def test_an_answer_that_ends_early_names_who_is_missing() -> None:
    inputs = [Input("x", name=name) for name in ("c", "a", "b")]
    with pytest.raises(Internal) as caught:
        asyncio.run(checked([[finished("b")]], *inputs))
    assert caught.value.message == "the answer ended before inputs ['a', 'c'] were finished"


def test_closing_the_check_closes_the_stream() -> None:
    async def scenario() -> str:
        source = Source([finished("a")], hang=True)
        check = CompletenessCheck(source(), [Input("x", name="a")])
        await anext(check)
        await check.aclose()
        return source.state

    assert asyncio.run(scenario()) == "cancelled"


def test_the_bytes_of_a_step_are_those_of_its_tensors_at_least() -> None:
    tensor = Tensor.of(np.zeros((1, 4, 1000), dtype=np.float32))
    frame = TensorFrame("a", 0, "h", ("z.0",), (0, 1, 2, 3), 0, tensor)
    assert step_bytes([]) == 0
    assert 16_000 <= step_bytes([frame]) < 17_000
    assert step_bytes([frame, frame]) == 2 * step_bytes([frame])


# ---- StreamResponse --------------------------------------------------------------------------------------------------


class Connection:
    """What is sent to a caller, who may break the connection at the nth message."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.messages: list[Any] = []
        self.breaks_at = breaks_at

    async def send(self, message: Any) -> None:
        if len(self.messages) == self.breaks_at:
            raise OSError("gone")
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def answered(source: Source, connection: Connection, receive: Any = stays, **options: Any) -> Lines:
    lines = Lines()

    async def scenario() -> None:
        await StreamResponse(source(), lines, **options)(SCOPE, receive, connection.send)

    asyncio.run(scenario())
    return lines


def test_a_stream_is_sent_piece_by_piece_and_ended() -> None:
    connection = Connection()
    answered(Source("a", "b"), connection)
    start, *bodies = connection.messages
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"content-type"].startswith(b"text/plain")
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers
    assert [message["body"] for message in bodies] == [b"a", b";", b"b", b";", b".", b""]
    assert [message["more_body"] for message in bodies] == [True] * 5 + [False]


def test_an_error_of_ours_is_the_last_thing_told() -> None:
    connection = Connection()
    answered(Source("a", NotFound("no such capture")), connection)
    assert connection.body == b"a;!NOT_FOUND no such capture req-1"
    assert connection.messages[-1]["more_body"] is False


def test_a_bug_is_told_without_its_words_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    connection = Connection()
    with caplog.at_level(logging.ERROR):
        answered(Source("a", ZeroDivisionError("a secret")), connection)
    assert connection.body.startswith(b"a;!INTERNAL")
    assert b"secret" not in connection.body
    assert "a secret" in caplog.text


@pytest.mark.parametrize("breaks_at", [0, 1, 2])
def test_a_connection_that_breaks_cancels_the_stream(breaks_at: int) -> None:
    source = Source("a", hang=True)
    answered(source, Connection(breaks_at))
    assert source.state in (("not begun",) if breaks_at == 0 else ("cancelled",))


def test_a_caller_who_leaves_ends_a_stream_that_waits() -> None:
    source, connection = Source("a", hang=True), Connection()
    answered(source, connection, leaves)
    assert source.state == "cancelled"
    assert all(message.get("more_body", True) for message in connection.messages), "it was not passed off as whole"


def test_only_big_items_are_encoded_off_the_event_loop() -> None:
    lines = answered(Source("a", "b" * 3), Connection(), size=lambda item: BIG_BYTES + len(item) - 2)
    assert lines.threads[0] == threading.get_ident()
    assert lines.threads[1] != threading.get_ident()
