"""Request bodies and query strings, read under a limit and refused with what is wrong."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from fastapi import Request

from probewire.protos.errors import Cancelled, Code, DeadlineExceeded, InvalidArgument
from probewire.protos.spec import Plan
from probewire.server.api.http import body as module
from probewire.server.api.http.body import BIG_BYTES, offload, parsed, query, read_object
from probewire.server.api.http.errors import BodyTooLarge


class Sender:
    """A caller who sends chunks, and then, where told to, leaves or falls silent."""

    def __init__(self, *chunks: bytes, end: str = "whole") -> None:
        self.left = list(chunks)
        self.end = end

    async def receive(self) -> dict[str, Any]:
        if self.left:
            chunk = self.left.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self.left) or self.end != "whole"}
        if self.end == "silent":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    def request(self, query_string: str = "", **headers: str) -> Request:
        names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "headers": names, "query_string": query_string.encode()}
        return Request(scope, self.receive)


def read(sender: Sender, max_bytes: int = 100, *, optional: bool = False, **headers: str) -> tuple[dict[str, Any], int]:
    return asyncio.run(read_object(sender.request(**headers), max_bytes, optional=optional))


def test_an_object_that_comes_in_pieces_is_read_whole() -> None:
    assert read(Sender(b'{"a"', b"", b": [1, ", b"2]}")) == ({"a": [1, 2]}, 13)


def test_an_empty_body_is_an_object_only_where_it_may_be_left_out() -> None:
    assert read(Sender(b""), optional=True) == ({}, 0)
    with pytest.raises(InvalidArgument, match="the body is not JSON"):
        read(Sender(b""))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{", "the body is not JSON"),
        (b"{} {}", "the body is not JSON"),
        (b'{"a": NaN}', "the body is not JSON"),
        (b"\xff{}", "the body is not JSON"),
        (b"[1]", r"the body must be a JSON object, got \[1\]"),
        (b"null", "the body must be a JSON object, got None"),
        (b'"text"', "the body must be a JSON object, got 'text'"),
    ],
)
def test_what_is_no_json_object_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        read(Sender(data))


def test_a_body_of_exactly_the_limit_is_read() -> None:
    data = b'{"a": "' + b"x" * 91 + b'"}'
    assert len(data) == 100
    assert read(Sender(data), content_length="100")[1] == 100


def test_an_announced_body_above_the_limit_is_refused_once_it_was_received() -> None:
    sender = Sender(b"x" * 60, b"x" * 60)
    with pytest.raises(BodyTooLarge) as caught:
        read(sender, content_length="120")
    assert caught.value.message.startswith("a request body may have 100 bytes, and this one announces 120 bytes")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert not sender.left, "an answer to a caller who still sends would be lost"


def test_who_asks_before_sending_is_refused_before_sending() -> None:
    sender = Sender(b"x" * 120)
    with pytest.raises(BodyTooLarge):
        read(sender, content_length="120", expect="100-Continue")
    assert sender.left, "nothing of it was awaited"


@pytest.mark.parametrize("announced", [{}, {"content_length": "50"}, {"content_length": "-1"}])
def test_a_body_that_goes_on_past_the_limit_is_refused(announced: dict[str, str]) -> None:
    sender = Sender(b"x" * 60, b"x" * 60, b"x" * 60)
    with pytest.raises(BodyTooLarge, match="this one goes on past that; send tensors as base64"):
        read(sender, **announced)
    assert not sender.left


def test_only_so_much_of_the_rest_is_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DROPPED_BYTES", 100)
    sender = Sender(*[b"x" * 60] * 10)
    with pytest.raises(BodyTooLarge):
        read(sender)
    assert len(sender.left) == 6, "two to see that it is too long, two more to have enough"


def test_who_never_ends_a_body_that_is_too_long_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DROPPED_S", 0.01)
    with pytest.raises(BodyTooLarge):
        read(Sender(b"x" * 120, end="silent"))


def test_a_body_that_never_arrives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_S", 0.01)
    with pytest.raises(DeadlineExceeded, match=r"the request's body did not arrive within 0\.01 s"):
        read(Sender(b"{", end="silent"))


def test_a_caller_who_leaves_halfway_has_cancelled() -> None:
    with pytest.raises(Cancelled, match="went away before the request was read"):
        read(Sender(b"{", end="gone"))


def test_only_big_work_leaves_the_event_loop() -> None:
    async def scenario() -> tuple[int, int]:
        return await offload(BIG_BYTES, threading.get_ident), await offload(BIG_BYTES + 1, threading.get_ident)

    small, big = asyncio.run(scenario())
    assert small == threading.get_ident()
    assert big != threading.get_ident()


def test_work_in_a_thread_raises_as_it_does_here() -> None:
    for size in (0, BIG_BYTES + 1):
        with pytest.raises(InvalidArgument, match="unknown"):
            asyncio.run(offload(size, parsed, Plan, {"hoks": []}))


def test_numbers_and_nesting_that_cannot_be_used_are_refused() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    add = {"site": "resid_post.0", "edit": {"add": {"vector": nested}}}
    with pytest.raises(InvalidArgument):
        parsed(Plan, {"hooks": [add]})
    with pytest.raises(InvalidArgument):
        parsed(Plan, {"hooks": [{"site": "resid_post.0", "edit": {"scale": {"factor": 10**400}}}]})


def test_the_query_string_as_names_and_values() -> None:
    assert query(Sender().request("model=a%2Fb&x="), "model", "x") == {"model": "a/b", "x": ""}
    assert query(Sender().request("")) == {}


def test_a_query_that_nobody_reads_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"unknown query parameters \['b', 'z'\]; allowed: model"):
        query(Sender().request("z=1&model=m&b=2&z=3"), "model")
    with pytest.raises(InvalidArgument, match="allowed: none"):
        query(Sender().request("model=m"))


def test_a_parameter_given_twice_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"given twice: \['model', 'model'\]"):
        query(Sender().request("model=a&model=a"), "model")
