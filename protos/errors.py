"""The one exception tree, and the one table from code to gRPC status and HTTP status.

ProbewireError
├── InvalidArgument      what was sent cannot be honoured; sending it again will not help
├── Unauthenticated      no key, or one that is not valid here
├── PermissionDenied     the key is good, and its role does not allow this
├── NotFound             no such model, capture, weight or hook id
├── FailedPrecondition   the request is well formed, but the model or the box is not in a state to serve it
├── ResourceExhausted    a stated limit was reached; `retry_after_s` says when to come back
├── Unsupported          this build or this model does not offer the operation
├── Cancelled            the caller went away or asked to stop
├── DeadlineExceeded     the caller's deadline passed
├── Unavailable          the worker is gone or not ready; safe to retry
└── Internal             a fault of ours
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "Cancelled",
    "Code",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ProbewireError",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "error_from_code",
]


@dataclass(frozen=True, slots=True)
class Status:
    """How one code looks on each API."""

    grpc: int
    """Numeric gRPC status code."""
    http: int
    """HTTP status code."""


class Code(Enum):
    """Why a request failed, the same on every API."""

    CANCELLED = Status(grpc=1, http=499)
    INVALID_ARGUMENT = Status(grpc=3, http=422)
    DEADLINE_EXCEEDED = Status(grpc=4, http=504)
    NOT_FOUND = Status(grpc=5, http=404)
    PERMISSION_DENIED = Status(grpc=7, http=403)
    RESOURCE_EXHAUSTED = Status(grpc=8, http=429)
    FAILED_PRECONDITION = Status(grpc=9, http=409)
    UNIMPLEMENTED = Status(grpc=12, http=501)
    INTERNAL = Status(grpc=13, http=500)
    UNAVAILABLE = Status(grpc=14, http=503)
    UNAUTHENTICATED = Status(grpc=16, http=401)


class ProbewireError(Exception):
    """Base of every error that probewire raises on purpose.

    The message names what was given, what is allowed, and the fix.
    """

    code: Code = Code.INTERNAL

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidArgument(ProbewireError, ValueError):
    code = Code.INVALID_ARGUMENT


class NotFound(ProbewireError, LookupError):
    code = Code.NOT_FOUND


class Unauthenticated(ProbewireError):
    code = Code.UNAUTHENTICATED


class PermissionDenied(ProbewireError):
    code = Code.PERMISSION_DENIED


class FailedPrecondition(ProbewireError):
    code = Code.FAILED_PRECONDITION


class ResourceExhausted(ProbewireError):
    code = Code.RESOURCE_EXHAUSTED


class Unsupported(ProbewireError):
    code = Code.UNIMPLEMENTED


class Cancelled(ProbewireError):
    code = Code.CANCELLED


class DeadlineExceeded(ProbewireError):
    code = Code.DEADLINE_EXCEEDED


class Unavailable(ProbewireError):
    code = Code.UNAVAILABLE


class Internal(ProbewireError):
    code = Code.INTERNAL


_BY_CODE: dict[Code, type[ProbewireError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        FailedPrecondition,
        ResourceExhausted,
        Unsupported,
        Cancelled,
        DeadlineExceeded,
        Unavailable,
        Internal,
    )
}


def error_from_code(code: Code, message: str, retry_after_s: float | None = None) -> ProbewireError:
    """The exception that stands for `code`: how a client rebuilds what the server raised."""
    return _BY_CODE[code](message, retry_after_s=retry_after_s)
