"""Foreign exceptions are translated at the edge, all of them."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
import httpx
import pytest

from probewire.clients import Internal, InvalidArgument, ProbewireError, Unavailable
from probewire.clients.transport import rest_errors, rpc_errors
from probewire.clients.transport.rest_calls import call_of
from probewire.protos.errors import Code, NotFound


class _Call(grpc.RpcError, grpc.Call):
    """What a failed call raises."""

    def __init__(self, status: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str], ...] = ()) -> None:
        self._answer = status, details, trailers

    def code(self):
        return self._answer[0]

    def details(self):
        return self._answer[1]

    def trailing_metadata(self):  # pyright: ignore[reportIncompatibleMethodOverride] - plain pairs serve as well
        return self._answer[2]


for _name in grpc.Call.__abstractmethods__ | grpc.RpcContext.__abstractmethods__:
    if _name not in vars(_Call):
        setattr(_Call, _name, lambda self: None)
_Call.__abstractmethods__ = frozenset()
_call: Any = _Call


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_every_grpc_status(status: grpc.StatusCode) -> None:
    error = rpc_errors.as_error(_call(status, "why"), "grpc://h:1", 5.0)
    assert isinstance(error, ProbewireError)
    own = {code.value.grpc: code for code in Code}
    if status.value[0] in own:
        assert error.code is own[status.value[0]]
    assert "grpc://h:1" in error.message


@pytest.mark.parametrize("code", list(Code))
def test_the_servers_own_message_is_kept(code: Code) -> None:
    status = next(s for s in grpc.StatusCode if s.value[0] == code.value.grpc)
    trailers = (("probewire-code", code.name), ("retry-after-s", "1.5"))
    error = rpc_errors.as_error(_call(status, "why", trailers), "grpc://h:1", 5.0)
    assert (error.code, error.message, error.retry_after_s) == (code, "why", 1.5)


def test_http_to_what_is_none() -> None:
    error = rest_errors.as_error(httpx.RemoteProtocolError("illegal request line"), "http://h:50051", None)
    assert "http://h:50051 does not speak HTTP (illegal request line); write grpc:// if it is the gRPC port" in str(
        error
    )


def test_a_bare_grpc_error() -> None:
    assert isinstance(rpc_errors.as_error(grpc.RpcError("odd"), "grpc://h:1", None), Internal)


def test_an_unreadable_answer_is_not_the_users_fault() -> None:
    with (
        pytest.raises(Internal, match="sent an answer that this version cannot read"),
        rpc_errors.translated("a", None),
    ):
        raise InvalidArgument("x is missing")
    with pytest.raises(Internal, match="cannot read"), rest_errors.readable("a"):
        raise InvalidArgument("x is missing")


def _httpx_exceptions() -> list[type[Exception]]:
    found = [e for _, e in inspect.getmembers(httpx, inspect.isclass) if issubclass(e, Exception)]
    return [e for e in found if e is not httpx.CookieConflict]  # only raised by cookie jars that users read


@pytest.mark.parametrize("kind", _httpx_exceptions())
def test_every_httpx_exception(kind: type[Exception]) -> None:
    if issubclass(kind, httpx.HTTPStatusError):
        error: Exception = kind("m", request=None, response=None)
    elif kind in (httpx.StreamConsumed, httpx.ResponseNotRead, httpx.RequestNotRead, httpx.StreamClosed):
        error = kind()
    else:
        error = kind("m")
    with pytest.raises(ProbewireError) as caught, rest_errors.translated("http://h", 5.0):
        raise error
    assert "http://h" in caught.value.message


@pytest.mark.parametrize("status", range(400, 600))
def test_every_http_status(status: int) -> None:
    error = rest_errors.error_of(httpx.Response(status, text="<html>proxy</html>"), "http://h")
    by_status = {code.value.http: code for code in Code}
    expected = by_status.get(status, error.code)
    assert error.code is expected
    assert f"http://h answered HTTP {status}" in error.message


@pytest.mark.parametrize("code", list(Code))
def test_our_error_body(code: Code) -> None:
    body = {"error": {"code": code.name, "message": "why"}}
    error = rest_errors.error_of(httpx.Response(code.value.http, json=body, headers={"retry-after": "2"}), "http://h")
    assert (error.code, error.message, error.retry_after_s) == (code, "why", 2.0)


BROKE = [
    rpc_errors.as_error(_call(grpc.StatusCode.UNAVAILABLE, "Stream removed (Socket closed)"), "there", None),
    rpc_errors.as_error(_call(grpc.StatusCode.UNAVAILABLE, "Cancelling all calls"), "there", None),
    rpc_errors.as_error(_call(grpc.StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer"), "there", None),
    rpc_errors.as_error(_call(grpc.StatusCode.UNKNOWN, "Stream removed"), "there", None),
    rpc_errors.as_error(_call(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"), "there", None),
    rest_errors.as_error(httpx.ReadError("reset"), "there", None),
    rest_errors.as_error(httpx.ReadError(""), "there", None),
    rest_errors.as_error(httpx.RemoteProtocolError("Server disconnected without sending a response."), "there", None),
]
NEVER_THERE = [
    rpc_errors.as_error(_call(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; …"), "there", None),
    rpc_errors.as_error(_call(grpc.StatusCode.UNAVAILABLE, "DNS resolution failed for there"), "there", None),
    rest_errors.as_error(httpx.ConnectError("[Errno 111] Connection refused"), "there", None),
    rest_errors.as_error(httpx.ProxyError("502 Bad Gateway"), "there", None),
]


@pytest.mark.parametrize("error", BROKE, ids=str)
def test_a_connection_that_broke_can_be_tried_again(error: ProbewireError) -> None:
    assert isinstance(error, Unavailable)
    assert error.message.startswith("the connection to there broke before the answer was whole (")
    assert "send the request again" in error.message
    assert "probewire serve" not in error.message
    assert error.retry_after_s


@pytest.mark.parametrize("error", NEVER_THERE, ids=str)
def test_a_connection_that_could_not_be_had_is_another_matter(error: ProbewireError) -> None:
    assert isinstance(error, Unavailable)
    assert error.message.startswith("no connection to there (")
    assert "start a server with `probewire serve`, or correct the address" in error.message
    assert error.retry_after_s is None


def test_a_path_that_lacks_its_name_is_refused_before_it_is_sent() -> None:
    for args in ((), ("",)):
        with pytest.raises(NotFound, match=r"session needs an id; sessions\(\) lists them"):
            call_of("session", *args)
