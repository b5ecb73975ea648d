"""Our errors as gRPC statuses and back, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from probewire.protos.errors import Code, Internal, NotFound, ProbewireError, Unavailable, error_from_code
from probewire.server.grpc_status import MAX_MESSAGE_BYTES, abort, as_error, is_from_service


class _Failing(grpc.GenericRpcHandler):
    """Ends every call with one error of ours, or by itself."""

    def __init__(self, error: ProbewireError | grpc.StatusCode) -> None:
        self.error = error

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            if isinstance(self.error, ProbewireError):
                await abort(context, self.error)
            await context.abort(self.error, "said by somebody else")
            return b""

        return grpc.unary_unary_rpc_method_handler(handle)


@asynccontextmanager
async def _address(error: ProbewireError | grpc.StatusCode) -> AsyncGenerator[str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Failing(error),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def received(error: ProbewireError | grpc.StatusCode) -> grpc.aio.AioRpcError:
    """What a client gets."""

    async def scenario() -> grpc.aio.AioRpcError:
        async with _address(error) as address, grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/any/Method")(b"")
            return caught.value

    return asyncio.run(scenario())


@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("retry_after_s", [None, 1.5])
def test_every_error_comes_back_as_it_was(code: Code, retry_after_s: float | None) -> None:
    error = error_from_code(code, "é went wrong: 100% of “it”", retry_after_s)
    got = received(error)
    assert got.code().value[0] == code.value.grpc
    assert is_from_service(got)
    back = as_error(got)
    assert (type(back), back.message, back.retry_after_s) == (type(error), error.message, retry_after_s)


@pytest.mark.parametrize("letter", ["x", "é", "%", "\n", "語"])
def test_a_message_that_is_too_long_to_travel_is_cut(letter: str) -> None:
    got = received(NotFound(letter * 100_000))
    message = as_error(got).message
    assert isinstance(as_error(got), NotFound)
    assert message.rstrip("…") == letter * (len(message) - 1)
    width = 1 if letter == "x" else 3 * len(letter.encode())
    assert MAX_MESSAGE_BYTES * 0.9 < len(message) * width <= MAX_MESSAGE_BYTES + width, "as much as may travel"


def test_a_message_that_just_fits_is_whole() -> None:
    text = "x" * MAX_MESSAGE_BYTES
    assert as_error(received(NotFound(text))).message == text


def test_what_grpc_says_by_itself_is_not_taken_for_ours() -> None:
    got = received(grpc.StatusCode.UNAVAILABLE)
    assert not is_from_service(got)
    error = as_error(got)
    assert isinstance(error, Unavailable)
    assert error.message == "no connection to the worker: said by somebody else"
    assert error.retry_after_s == 1.0


def test_a_status_that_we_know_keeps_its_meaning_whoever_sent_it() -> None:
    error = as_error(received(grpc.StatusCode.NOT_FOUND))
    assert (type(error), error.message, error.retry_after_s) == (NotFound, "said by somebody else", None)


def test_a_status_that_we_do_not_use_is_a_fault() -> None:
    error = as_error(received(grpc.StatusCode.DATA_LOSS))
    assert isinstance(error, Internal)
    assert error.message == "the worker answered DATA_LOSS: said by somebody else"


def test_a_worker_that_is_not_there_is_unavailable() -> None:
    async def scenario() -> grpc.aio.AioRpcError:
        async with grpc.aio.insecure_channel("unix:/nonexistent/socket") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/any/Method")(b"")
            return caught.value

    error = as_error(asyncio.run(scenario()))
    assert isinstance(error, Unavailable)
    assert error.message.startswith("no connection to the worker: ")


def test_an_error_without_words_has_its_status_for_one() -> None:
    nothing = grpc.aio.Metadata()
    error = as_error(grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, nothing, nothing))
    assert (type(error), error.message) == (NotFound, "NOT_FOUND")
