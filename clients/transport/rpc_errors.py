"""grpc's exceptions as ours. The server's own errors carry `probewire-code`; the rest come from the connection."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import cast

import grpc
import grpc.aio

from ...protos.errors import Code, FailedPrecondition, Internal, InvalidArgument, ProbewireError, error_from_code
from .base import fix_for, lost

__all__ = ["as_error", "translated"]

CODE_KEY = "probewire-code"
RETRY_KEY = "retry-after-s"

_CODES: dict[grpc.StatusCode, Code] = {
    status: code for code in Code for status in grpc.StatusCode if status.value[0] == code.value.grpc
} | {
    # Statuses outside our table, which proxies and grpc itself may answer with.
    grpc.StatusCode.OK: Code.INTERNAL,
    grpc.StatusCode.UNKNOWN: Code.INTERNAL,
    grpc.StatusCode.DATA_LOSS: Code.INTERNAL,
    grpc.StatusCode.ABORTED: Code.UNAVAILABLE,
    grpc.StatusCode.ALREADY_EXISTS: Code.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE: Code.INVALID_ARGUMENT,
}


_NEVER_THERE = (
    "failed to connect",
    "Failed to connect",
    "connections to all backends failing",
    "DNS resolution failed",
    "name resolution",
    "empty address list",
    "handshake",
)
"""What grpc says of a connection that could not be had."""
_BROKE = ("Stream removed", "RST_STREAM", "Connection reset", "Socket closed")
"""What it says, under other statuses, of one that broke."""


@contextmanager
def translated(address: str, timeout_s: float | None) -> Generator[None]:
    """Raise ProbewireError for whatever grpc raises, or for an answer that this version cannot read."""
    try:
        yield
    except grpc.RpcError as error:
        raise as_error(error, address, timeout_s) from None
    except ValueError as error:
        if isinstance(error, InvalidArgument):
            raise Internal(f"{address} sent an answer that this version cannot read: {error.message}") from error
        if "closed" not in str(error):  # grpc has no exception of its own for it
            raise
        raise FailedPrecondition(f"the client of {address} is closed; make a new Client") from None


def as_error(error: grpc.RpcError, address: str, timeout_s: float | None) -> ProbewireError:
    """The exception that stands for a failed call."""
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return Internal(f"{address}: {error}")
    status, details = error.code(), error.details() or ""
    trailers = dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()))
    code = _CODES[status]
    if CODE_KEY in trailers:
        return error_from_code(code, details, _seconds(trailers.get(RETRY_KEY)))
    if _broke(status, details):
        return lost(address, details)
    return error_from_code(code, _explained(status, details, address, timeout_s))


def _broke(status: grpc.StatusCode, details: str) -> bool:
    """Whether there was a connection, and it went: grpc has one status for that and for none at all."""
    if status is grpc.StatusCode.UNAVAILABLE:
        return not any(word in details for word in _NEVER_THERE)
    return status in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL) and any(word in details for word in _BROKE)


def _explained(status: grpc.StatusCode, details: str, address: str, timeout_s: float | None) -> str:
    if status is grpc.StatusCode.UNAVAILABLE:
        return f"no connection to {address} ({details}); {fix_for(details)}"
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{address} did not finish within timeout_s={timeout_s:g}; pass a larger timeout_s to Client"
    if status in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return f"{address} refused the call ({details}); pass a valid api_key to Client"
    return f"{address} answered {status.name}: {details}"


def _seconds(value: str | bytes | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
