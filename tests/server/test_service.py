"""How an operation is asked for, by its row or by its name, of whatever answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_model import FakeOperations

from probewire.protos.errors import NotFound
from probewire.protos.loading import HealthReport
from probewire.protos.model import Finished, Input, RunRequest, Started, Tokenized, TokenizeRequest
from probewire.protos.operations import BY_CALL, BY_NAME, COMPUTED, Operation
from probewire.server.service import answer, compute


class Both:
    """One operation with a method of its own; all others by their rows."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    async def health(self) -> HealthReport:
        return HealthReport(True, "")

    async def describe(self, model: str) -> str:
        self.seen.append(("own", model))
        return "described"

    async def other(self, operation: Operation, *args: Any) -> str:
        self.seen.append((operation, *args))
        return f"other {operation.call}"


def test_what_has_a_method_is_answered_by_it() -> None:
    for operation in ("describe", BY_CALL["describe"]):
        both = Both()
        assert asyncio.run(answer(both, operation, "m")) == "described"
        assert both.seen == [("own", "m")]


def test_what_has_none_is_answered_by_its_row() -> None:
    for operation in ("unload_sae", BY_NAME["Saes.Unload"]):
        both = Both()
        assert asyncio.run(answer(both, operation, "sae", "m")) == "other unload_sae"
        assert both.seen == [(BY_NAME["Saes.Unload"], "sae", "m")]


def test_a_call_that_no_row_names_is_a_slip_of_ours() -> None:
    with pytest.raises(KeyError, match="no_such"):
        asyncio.run(answer(Both(), "no_such"))


def test_an_answer_and_an_error_come_as_they_are() -> None:
    operations = FakeOperations()
    found = asyncio.run(answer(operations, "tokenize", TokenizeRequest(Input("ab"))))
    assert found == Tokenized((97, 98), ("a", "b"), "ab", (b"a", b"b"))
    with pytest.raises(NotFound, match="no model 'x'"):
        asyncio.run(answer(operations, "describe", "x"))


def test_events_are_those_of_the_operation_that_takes_such_a_request() -> None:
    operations, request = FakeOperations(), RunRequest((Input("ab"),))

    async def scenario() -> list[type]:
        stream = compute(operations, COMPUTED[type(request)], request)
        return [type(event) async for events in stream for event in events]

    assert asyncio.run(scenario()) == [Started, Finished]
    assert operations.requests == [request]


def test_closing_the_events_cancels_the_request() -> None:
    operations, request = FakeOperations(), RunRequest((Input("hang@0"),))

    async def scenario() -> None:
        stream: Any = compute(operations, COMPUTED[type(request)], request)
        await anext(stream)
        await stream.aclose()

    asyncio.run(scenario())
    assert (operations.running, operations.cancelled) == (0, 1)
