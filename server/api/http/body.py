"""Request bodies and query strings: read under a limit, parsed, and refused with a 422 that says what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, ParamSpec, TypeVar, cast

import orjson
from fastapi import Request
from starlette.requests import ClientDisconnect

from ....protos.errors import Cancelled, DeadlineExceeded, InvalidArgument
from ....protos.wire.codec import from_json
from .errors import BodyTooLarge
from .fields import brief

__all__ = ["BIG_BYTES", "offload", "parsed", "query", "read_object"]

P = ParamSpec("P")
T = TypeVar("T")

BIG_BYTES = 256 << 10
"""Work on more than this many bytes is done off the event loop."""
BODY_S = 120.0
"""How long a body may take to arrive."""
DROPPED_BYTES, DROPPED_S = 1 << 30, 5.0
"""How much of a body over the limit is still received, and for how long."""


async def offload(n_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args)`, in a thread when it has to go over many bytes."""
    if n_bytes <= BIG_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


async def read_object(request: Request, max_bytes: int, *, optional: bool = False) -> tuple[dict[str, Any], int]:
    """The JSON object in the body, and how many bytes it took. With `optional` an empty body is an empty object."""
    body = await _read(request, max_bytes)
    if optional and not body:
        return {}, 0
    return await offload(len(body), _object, body), len(body)


async def _read(request: Request, max_bytes: int) -> bytes:
    declared, chunks = request.headers.get("content-length", ""), request.stream()
    if declared.isdecimal() and int(declared) > max_bytes:
        if request.headers.get("expect", "").lower() != "100-continue":
            await _drop(chunks)
        raise _too_large(max_bytes, f"announces {int(declared):,} bytes")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    parts.clear()
                    await _drop(chunks)
                    raise _too_large(max_bytes, "goes on past that")
                parts.append(chunk)
    except TimeoutError:
        raise DeadlineExceeded(f"the request's body did not arrive within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise Cancelled("the caller went away before the request was read") from None
    return b"".join(parts)


async def _drop(chunks: AsyncIterator[bytes]) -> None:
    """Receive the rest for nothing: closing on unread bytes resets the connection, and the answer would be lost."""
    left = DROPPED_BYTES
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DROPPED_S):
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return


def _too_large(max_bytes: int, given: str) -> BodyTooLarge:
    return BodyTooLarge(
        f"a request body may have {max_bytes:,} bytes, and this one {given}; send tensors as base64, fewer inputs, "
        "or use gRPC"
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidArgument(f"the body must be a JSON object, got {brief(data)}")
    return cast("dict[str, Any]", data)


def parsed(cls: type[T], data: Any, path: str = "") -> T:
    """`wire.from_json`, with the two ways left in which numbers and nesting can go wrong."""
    try:
        return from_json(cls, data, path)
    except (OverflowError, RecursionError) as error:
        raise InvalidArgument(f"the body holds a value that cannot be used: {error}") from None


def query(request: Request, *allowed: str) -> dict[str, str]:
    """The query string; unknown or repeated parameters are refused."""
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    unknown = sorted({name for name in names if name not in allowed})
    if unknown:
        raise InvalidArgument(f"unknown query parameters {unknown}; allowed: {', '.join(allowed) or 'none'}")
    if len(set(names)) != len(names):
        raise InvalidArgument(f"a query parameter is given twice: {names}")
    return dict(given)
