"""Errors as HTTP answers, and the reception of the app: request ids, counts, and a 500 that tells nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ....protos.errors import Code, Internal, InvalidArgument, ProbewireError, ResourceExhausted, error_from_code
from ....protos.wire.error_body import error_to_json
from ...auth.callers import new_request_id
from ...metrics import Metrics

__all__ = [
    "BodyTooLarge",
    "JsonResponse",
    "Reception",
    "add_error_handlers",
    "error_response",
    "of_ours",
    "request_id",
]

logger = logging.getLogger(__name__)

_NO_ROUTE = "none"


class BodyTooLarge(ResourceExhausted):
    """A request body over the limit: RESOURCE_EXHAUSTED, as gRPC says of an oversized message, but HTTP 413.

    Not 429, which asks clients to send the same again later.
    """


class JsonResponse(Response):
    """Anything that orjson writes, numpy arrays too; numbers that JSON lacks (NaN, ±inf) become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return content if isinstance(content, bytes) else orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def request_id(scope: Scope) -> str:
    """The id that the answer's `x-request-id` carries."""
    return scope["state"]["request_id"]


def error_response(error: ProbewireError, id: str, status: int | None = None) -> Response:  # noqa: A002 - what it is called on the wire
    """The answer that tells of an error; `status` where HTTP has a closer one than the error's code."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    status = status or error.code.value.http
    if isinstance(error, BodyTooLarge):
        status = 413
        headers["connection"] = "close"  # the rest of the body is not going to be read
    if error.code is Code.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return JsonResponse(error_to_json(error, id), status, headers)


def of_ours(error: Exception, scope: Scope) -> ProbewireError:
    """`error` itself if it is meant for the caller; else Internal with nothing but the request id, the rest logged."""
    if isinstance(error, ProbewireError):
        return error
    logger.error("request %s: %s %s failed", request_id(scope), scope["method"], scope["path"], exc_info=error)
    return Internal(f"the server failed on this request; its log says why, under request id {request_id(scope)}")


class Reception:
    """Pure ASGI, outside all that may refuse: gives each request an id, counts it, and answers 500 where nothing else did."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = new_request_id()
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id(scope).encode())]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            problem = of_ours(_behind(error) if status else error, scope)
            if status:
                raise problem from error  # the answer has begun: all that is left is to break it off
            await error_response(problem, request_id(scope))(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self._metrics.http(scope["method"], route, status or Code.CANCELLED.value.http)


def _behind(error: Exception) -> Exception:
    """What a route raised after its answer had begun: Starlette hides it, as its handlers can tell nobody any more."""
    return error.__cause__ if isinstance(error.__cause__, ProbewireError) else error


def add_error_handlers(app: FastAPI) -> None:
    """Every refusal, the framework's too, in the one shape."""
    app.add_exception_handler(ProbewireError, _ours)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _validation)


async def _ours(request: Request, error: Exception) -> Response:
    return error_response(of_ours(error, request.scope), request_id(request.scope))


async def _validation(request: Request, error: Exception) -> Response:
    return error_response(InvalidArgument(str(error)), request_id(request.scope))


async def _framework(request: Request, error: Exception) -> Response:
    """No such route, no such method: what Starlette answers by itself."""
    assert isinstance(error, HTTPException)
    status, headers = error.status_code, error.headers
    path = request.scope["path"]
    if status == 405:
        allowed = dict[str, str](headers or {}).get("Allow", "")
        message, code = f"{request.method} is not allowed at {path}; allowed: {allowed}", Code.UNIMPLEMENTED
    elif status == 404:
        message, code = f"there is nothing at {path}; /docs lists what there is", Code.NOT_FOUND
    else:
        message, code = error.detail, Code.INVALID_ARGUMENT
    return _with_status(error_from_code(code, message), status, headers, request_id(request.scope))


def _with_status(error: ProbewireError, status: int, headers: Mapping[str, str] | None, id: str) -> Response:  # noqa: A002 - as above
    return JsonResponse(error_to_json(error, id), status, dict(headers or {}))
