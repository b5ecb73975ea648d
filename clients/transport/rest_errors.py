"""httpx's exceptions and HTTP's error answers as ours."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager

import httpx

from ...protos.errors import (
    Code,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ProbewireError,
    Unavailable,
)
from ...protos.wire.error_body import error_from_json
from .base import fix_for, lost

__all__ = ["Deadline", "as_error", "error_of", "readable", "translated"]

_CODES: dict[int, Code] = {code.value.http: code for code in Code} | {
    # What proxies and web frameworks answer with.
    405: Code.UNIMPLEMENTED,
    408: Code.DEADLINE_EXCEEDED,
    413: Code.RESOURCE_EXHAUSTED,
    502: Code.UNAVAILABLE,
}


@contextmanager
def translated(address: str, timeout_s: float | None) -> Generator[None]:
    """Raise ProbewireError for whatever httpx raises, or for an answer that this version cannot read."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise as_error(error, address, timeout_s) from None
    except RuntimeError as error:
        if "closed" not in str(error):
            raise
        raise FailedPrecondition(f"the client of {address} is closed; make a new Client") from None


@contextmanager
def readable(address: str) -> Generator[None]:
    """Raise Internal for an answer that this version cannot read."""
    try:
        yield
    except (InvalidArgument, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Internal(f"{address} sent an answer that this version cannot read: {error}") from error


def as_error(error: Exception, address: str, timeout_s: float | None) -> ProbewireError:
    """The exception that stands for a failed exchange."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
        return Unavailable(f"no connection to {address} ({error}); {fix_for(str(error))}")
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(_too_late(address, timeout_s))
    if isinstance(error, httpx.RemoteProtocolError) and "illegal" in str(error):
        return Unavailable(
            f"{address} does not speak HTTP ({error}); write grpc:// if it is the gRPC port, or correct it"
        )
    if isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol):
        return lost(address, str(error) or type(error).__name__)
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        return InvalidArgument(f"cannot use the address {address}: {error}")
    return Internal(f"{address}: {type(error).__name__}: {error}")


def error_of(response: httpx.Response, address: str) -> ProbewireError:
    """The exception that stands for an error answer, whose body has been read."""
    status = response.status_code
    otherwise = _CODES.get(status, Code.INVALID_ARGUMENT if 400 <= status < 500 else Code.INTERNAL)
    try:
        error = error_from_json(response.json(), otherwise)
    except (json.JSONDecodeError, UnicodeDecodeError):
        error = error_from_json(f"{address} answered HTTP {status}: {response.text[:200]}", otherwise)
    if error.retry_after_s is None:
        error.retry_after_s = _seconds(response.headers.get("retry-after"))
    return error


class Deadline:
    """Of a call as a whole, where httpx bounds each wait."""

    def __init__(self, address: str, timeout_s: float | None) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s

    def check(self) -> None:
        """Raise DeadlineExceeded when it has passed."""
        if self._end_s is not None and time.monotonic() > self._end_s:
            raise DeadlineExceeded(_too_late(self._address, self._timeout_s))


def _too_late(address: str, timeout_s: float | None) -> str:
    limit = "in time" if timeout_s is None else f"within timeout_s={timeout_s:g}"
    return f"{address} did not finish {limit}; pass a larger timeout_s to Client"


def _seconds(value: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not used by our servers."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
