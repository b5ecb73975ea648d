"""How calls end whose callers have gone: one line in the log, and no fault of ours. Real faults stay what they are."""

from __future__ import annotations

import asyncio
import logging
import pkgutil
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
import pytest
from fake_worker import FakeOperations
from serving import served

from probewire.protos.errors import NotFound
from probewire.server.api.grpc import service as rpc
from probewire.server.auth.callers import Caller, local_caller

DEAD: Exception = pkgutil.resolve_name("grpc._cython.cygrpc:ExecuteBatchError")('Failed "execute_batch": (…)')
"""What grpc raises then; it exports no name for it."""


class Gone:
    """A call as grpc has it between its end in grpc's core and its cancellation here: nothing arrives, nothing goes out.

    That moment cannot be met on purpose over a socket; under load about one call in two hundred is in it.
    """

    def __init__(self, *messages: bytes) -> None:
        self._messages = list(messages)
        self.aborted = 0

    async def read(self) -> object:
        return self._messages.pop(0) if self._messages else grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        raise DEAD

    async def abort(self, code: grpc.StatusCode, details: str, trailers: object) -> None:
        self.aborted += 1
        raise DEAD

    def done(self) -> bool:
        return self.aborted > 0


def admit(context: object) -> Caller:
    return local_caller()


async def two(request: bytes) -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


async def refused(request: bytes) -> bytes:
    raise NotFound("no such thing")


async def bug(request: bytes) -> bytes:
    raise RuntimeError("secret")


def unary(call: Callable[..., Any]) -> Callable[..., Any]:
    return cast("Any", rpc._unary_handler(call, admit)).stream_unary


def streaming(call: Callable[..., Any]) -> Callable[..., Any]:
    return cast("Any", rpc._streaming_handler(call, admit)).stream_stream


@pytest.mark.parametrize(
    ("handler", "context"),
    [
        (unary(refused), Gone()),  # the caller ended before the request came
        (streaming(two), Gone()),
        (streaming(two), Gone(b"request")),  # a deadline passed while a message was on its way
        (unary(refused), Gone(b"request")),
    ],
)
def test_it_is_one_line_and_the_call_counts_as_cancelled(
    handler: Callable[..., Any], context: Gone, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(asyncio.CancelledError):
        asyncio.run(handler(None, context))
    [record] = caplog.records
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert record.getMessage() == "a call ended unanswered: its caller left, or its deadline passed"
    assert context.aborted == 1


def test_a_bug_is_a_fault_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(asyncio.CancelledError):
        asyncio.run(unary(bug)(None, Gone(b"request")))
    fault, gone = caplog.records
    assert fault.levelno == logging.ERROR
    assert fault.exc_info
    assert "secret" in str(fault.exc_info[1])
    assert gone.levelno == logging.INFO


def logged_by_grpc(error: Exception, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """As grpc's server does, once one of ours was made."""

    async def made() -> None:
        async with served(FakeOperations()):
            pass

    asyncio.run(made())
    with caplog.at_level(logging.INFO):
        try:
            raise error
        except Exception:
            logging.getLogger("grpc._cython.cygrpc").exception("%s raised in core by servicer method [x]", "It")
    return caplog.records[-1]


def test_what_grpc_says_of_a_caller_who_has_gone_is_one_line_too(caplog: pytest.LogCaptureFixture) -> None:
    record = logged_by_grpc(DEAD, caplog)
    assert (record.levelno, record.levelname, record.exc_info) == (logging.INFO, "INFO", None)
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("error", [RuntimeError("ours"), grpc.aio.InternalError("grpc's"), grpc.aio.UsageError("x")])
def test_and_what_it_says_of_anything_else_is_an_error(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    record = logged_by_grpc(error, caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert record.exc_info[1] is error
