"""The HTTP door, pure ASGI: whose key a request carries, and how long its caller will wait."""

from __future__ import annotations

import asyncio
import math

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ....protos.errors import DeadlineExceeded, InvalidArgument, ProbewireError
from ...auth.access import Access
from ...auth.callers import CALLER
from .docs import DOC_PATHS
from .errors import error_response, request_id

__all__ = ["TIMEOUT_HEADER", "AuthMiddleware"]

TIMEOUT_HEADER = "x-timeout-s"
OPEN_PATHS = frozenset({"/health", "/openapi.json", *DOC_PATHS})
"""They tell nothing of anybody."""


class AuthMiddleware:
    """Sets the caller of each request, or answers 401; ends a request whose own deadline has passed with 504."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        peer = scope["client"][0] if scope.get("client") else ""
        try:
            caller = self._access.enter(headers.get("authorization", ""), peer, request_id(scope))
            timeout_s = _timeout(headers.get(TIMEOUT_HEADER))
        except ProbewireError as error:
            await error_response(error, request_id(scope))(scope, receive, send)
            return
        CALLER.set(caller)
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                await self._app(scope, receive, noted)
        except TimeoutError:
            if not deadline.expired():  # some other wait of the app's
                raise
            error = DeadlineExceeded(f"the request did not end within {TIMEOUT_HEADER}: {timeout_s:g}")
            if begun:
                raise error from None  # the answer has begun: all that is left is to break it off
            await error_response(error, request_id(scope))(scope, receive, send)


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidArgument(f"{TIMEOUT_HEADER} must be a number of seconds above 0, got {text[:40]!r}")
    return seconds
