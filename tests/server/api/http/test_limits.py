"""Callers who are slow on purpose, or never stop: how long a connection waits for a head and a body, on both APIs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import uvicorn
from fake_model import FakeOperations
from http_server import eventually
from serving import served

from probewire.cli.serve import http as http_module
from probewire.cli.serve.http import ImpatientProtocol
from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import Unauthenticated
from probewire.server.api.grpc import service as rpc
from probewire.server.api.http import body as rest_body
from probewire.server.api.http.app import create_app
from probewire.server.auth.access import Access
from probewire.server.auth.callers import Caller

SOON_S = 0.3
PATIENCE_S = 5.0
"""Far above SOON_S, far below what is set outside tests."""
MAX_BODY = 1 << 16


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds, short enough to wait for."""
    monkeypatch.setattr(ImpatientProtocol, "head_s", SOON_S)
    monkeypatch.setattr(rest_body, "BODY_S", SOON_S)
    monkeypatch.setattr(rest_body, "DROPPED_S", SOON_S / 3)
    monkeypatch.setattr(rpc, "REQUEST_S", SOON_S)
    monkeypatch.setattr(rpc, "STRANGER_S", SOON_S)


Address = tuple[str, int]


class NoKeyIsGood(Access):
    """A door that lets nobody in."""

    def enter(self, authorization: str, peer: str, request_id: str = "", *, api: str = "http") -> Caller:
        raise Unauthenticated("no key is good here")


@contextlib.contextmanager
def running(access: Access | None = None) -> Generator[Address]:
    """Host and port of the app behind the real protocol class."""
    app = create_app(FakeOperations(), version="test", max_body_bytes=MAX_BODY, access=access)
    config = uvicorn.Config(app, port=0, http=ImpatientProtocol, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert eventually(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def address() -> Generator[Address]:
    """A server that lets everybody in."""
    with running() as address:
        yield address


@pytest.fixture(scope="module")
def locked() -> Generator[Address]:
    """One that lets nobody in."""
    with running(NoKeyIsGood()) as address:
        yield address


def drip(address: Address, opening: bytes, drop: bytes, every_s: float = 0.02) -> tuple[bytes, float]:
    """Send an opening and then drop after drop until the server hangs up: what it said, and after how long."""
    began_s, answer = time.monotonic(), b""
    with socket.create_connection(address, timeout=every_s) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(opening)
        while time.monotonic() < began_s + PATIENCE_S:
            try:
                some = connection.recv(1 << 16)
                if not some:
                    break
                answer += some
            except TimeoutError:
                connection.sendall(drop)
        else:
            pytest.fail("it was never hung up on")
    return answer, time.monotonic() - began_s


HEAD = b"POST /v1/run HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
CHUNK = b"4000\r\n" + b"a" * 0x4000 + b"\r\n"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("opening", [HEAD + b"x: ", b"G", b""], ids=["header", "line", "nothing"])
def test_a_head_that_comes_a_byte_at_a_time_is_hung_up_on(address: Address, opening: bytes) -> None:
    answer, after_s = drip(address, opening, b"a" if opening else b"")
    assert answer == b""
    assert SOON_S * 0.9 < after_s < PATIENCE_S
    assert httpx.get(f"http://{address[0]}:{address[1]}/health", trust_env=False).status_code == 200


@pytest.mark.usefixtures("quick")
def test_a_second_head_has_no_longer(address: Address) -> None:
    answer, after_s = drip(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"a")
    assert answer.startswith(b"HTTP/1.1 200")
    assert after_s < PATIENCE_S


def test_it_takes_seconds_outside_tests() -> None:
    assert ImpatientProtocol.head_s == http_module.HEAD_S == 20.0


@pytest.mark.usefixtures("quick")
def test_a_body_that_never_ends_slowly_is_given_up(address: Address) -> None:
    answer, _ = drip(address, CHUNKED, b"1\r\na\r\n")
    assert answer.startswith(b"HTTP/1.1 504")
    assert b"did not arrive within 0.3 s" in answer


@pytest.mark.usefixtures("quick")
def test_a_body_is_cut_off_at_the_limit(address: Address) -> None:
    """What follows is received for nothing for a moment, so that the answer is not lost with a reset connection."""
    answer, _ = drip(address, CHUNKED + CHUNK * 8, b"")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"goes on past that" in answer


@pytest.mark.usefixtures("quick")
def test_who_never_stops_sending_is_hung_up_on(address: Address) -> None:
    """The answer may be lost on them: their own bytes, still under way, reset the connection."""
    answer, _ = drip(address, CHUNKED, CHUNK, every_s=0.001)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")


@pytest.mark.usefixtures("quick")
def test_a_body_that_is_announced_too_long_and_does_not_come_is_refused(address: Address) -> None:
    answer, _ = drip(address, HEAD + b"content-length: 999999999999\r\n\r\n", b"")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"announces 999,999,999,999 bytes" in answer


@pytest.mark.usefixtures("quick")
def test_a_stranger_who_was_answered_may_not_go_on_with_his_body(locked: Address) -> None:
    answer, after_s = drip(locked, HEAD + b"content-length: 60000\r\n\r\n", b"a")
    assert answer.startswith(b"HTTP/1.1 401")
    assert after_s < PATIENCE_S


@pytest.mark.usefixtures("quick")
def test_garbage_behind_an_answer_is_hung_up_on_without_a_traceback(
    locked: Address, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer, _ = drip(locked, CHUNKED, b"zz\r\n", every_s=0.1)
    assert answer.startswith(b"HTTP/1.1 401")
    assert not caplog.records


# ---- gRPC ------------------------------------------------------------------------------------------------------------


def over_grpc(admit: Callable[[Any], Caller], method: str) -> grpc.aio.AioRpcError:
    """How a call ends whose request never comes."""

    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(PATIENCE_S)
        yield b""

    async def call() -> grpc.aio.AioRpcError:
        async with served(FakeOperations(), admit=admit) as it:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await it.channel.stream_unary(method)(never(), timeout=PATIENCE_S)
            return ended.value

    return asyncio.run(call())


def nobody(context: object) -> Caller:
    raise Unauthenticated("no key is good here")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", ["Models/Describe", "Inference/Generate"])
def test_a_request_that_never_comes_is_given_up(method: str) -> None:
    ended = over_grpc(rpc.admit_from_the_gateway, f"/probewire.v1.{method}")
    assert ended.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "did not arrive within 0.3 s" in (ended.details() or "")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "method", ["health.v1.Health/Check", "reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
)
def test_nor_does_it_wait_where_no_key_is_asked_for(method: str) -> None:
    ended = over_grpc(nobody, f"/grpc.{method}")
    assert "did not arrive within 0.3 s" in (ended.details() or "")


@pytest.mark.parametrize("method", ["Models/Describe", "Inference/Generate"])
def test_a_stranger_is_refused_before_his_request_is_read(method: str) -> None:
    """With the bounds as they are: were it read first, this would wait for two minutes."""
    assert over_grpc(nobody, f"/probewire.v1.{method}").code() is grpc.StatusCode.UNAUTHENTICATED


def test_one_message_is_a_call() -> None:
    async def call(*messages: bytes) -> object:
        async def sent() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        async with served(FakeOperations()) as it:
            return await it.channel.stream_unary("/probewire.v1.Models/Describe")(sent())

    assert pb.ModelInfo.FromString(asyncio.run(call(b""))).id == "fake/model"
    with pytest.raises(grpc.aio.AioRpcError, match="without a request"):
        asyncio.run(call())
