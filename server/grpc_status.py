"""ProbewireError as a gRPC status and back: code, message, and what clients may act on in the trailing metadata."""

from __future__ import annotations

import grpc
import grpc.aio

from ..protos.errors import Code, Internal, ProbewireError, Unavailable, error_from_code

__all__ = ["CODE_KEY", "RETRY_KEY", "abort", "as_error", "is_from_service"]

RETRY_KEY = "retry-after-s"
CODE_KEY = "probewire-code"
"""Present on every error that a probewire service raised, so that it is not taken for a broken connection."""

MAX_MESSAGE_BYTES = 4000
"""As it travels: peers refuse trailers of more than 8 KiB."""

_TO_GRPC: dict[Code, grpc.StatusCode] = {
    code: next(status for status in grpc.StatusCode if status.value[0] == code.value.grpc) for code in Code
}
_FROM_GRPC: dict[grpc.StatusCode, Code] = {status: code for code, status in _TO_GRPC.items()}


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], error: ProbewireError) -> None:
    """End a call with the error's status."""
    trailers = [(CODE_KEY, error.code.name)]
    if error.retry_after_s is not None:
        trailers.append((RETRY_KEY, f"{error.retry_after_s:g}"))
    message = error.message
    while _trailer_bytes(message) > MAX_MESSAGE_BYTES:
        message = message[: len(message) * MAX_MESSAGE_BYTES // _trailer_bytes(message) - 1] + "…"
    await context.abort(_TO_GRPC[error.code], message, tuple(trailers))


def _trailer_bytes(message: str) -> int:
    """gRPC writes a byte that is not plain ASCII as three."""
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in message.encode())


def is_from_service(error: grpc.aio.AioRpcError) -> bool:
    """Whether a probewire service raised it, rather than gRPC itself (a broken connection, a message too large)."""
    return _trailer(error, CODE_KEY) is not None


def as_error(error: grpc.aio.AioRpcError) -> ProbewireError:
    """What the service raised, rebuilt."""
    code = _FROM_GRPC.get(error.code())
    message = error.details() or error.code().name
    if code is None:
        return Internal(f"the worker answered {error.code().name}: {message}")
    if code is Code.UNAVAILABLE and not is_from_service(error):
        return Unavailable(f"no connection to the worker: {message}", retry_after_s=1.0)
    retry = _trailer(error, RETRY_KEY)
    return error_from_code(code, message, float(retry) if retry else None)


def _trailer(error: grpc.aio.AioRpcError, key: str) -> str | None:
    trailers = error.trailing_metadata() or ()
    return next((str(value) for name, value in trailers if name == key), None)
