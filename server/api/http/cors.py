"""Which pages may read our answers: none but those that the operator has named, and those without credentials."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ....protos.errors import InvalidArgument, PermissionDenied
from ...auth.origins import Origin
from .errors import error_response, request_id

__all__ = ["Cors"]

METHODS = "GET, POST, PUT, DELETE"
REQUEST_HEADERS = "authorization, content-type, x-timeout-s"
"""For a browser that does not say which ones its page wants."""
READABLE_HEADERS = "x-request-id, retry-after"
PREFLIGHT_S = 600


class Cors:
    """Answers the browser's question before a request (its preflight), and marks the answers that a page may read."""

    def __init__(self, app: ASGIApp, origins: Iterable[Origin]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowed = self._allowed(headers)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._mark(MutableHeaders(scope=message), allowed)
            await send(message)

        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(scope, headers, allowed)(scope, receive, marked)
        else:
            await self._app(scope, receive, marked if self._origins else send)

    def _allowed(self, headers: Headers) -> str | None:
        """The Origin as it was sent, if its page is one of those."""
        given = headers.getlist("origin")
        try:
            return given[0] if len(given) == 1 and Origin.of(given[0]) in self._origins else None
        except InvalidArgument:
            return None

    @staticmethod
    def _mark(headers: MutableHeaders, allowed: str | None) -> None:
        headers.add_vary_header("origin")
        if allowed is not None:
            headers["access-control-allow-origin"] = allowed
            headers["access-control-expose-headers"] = READABLE_HEADERS


def _preflight(scope: Scope, headers: Headers, allowed: str | None) -> Response:
    if allowed is None:
        refused = PermissionDenied(
            "a page of that origin may not use this server; start it with `probewire serve --allowed-origin ORIGIN` if "
            "the page is yours"
        )
        return error_response(refused, request_id(scope), 403)
    answer = {
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": headers.get("access-control-request-headers", REQUEST_HEADERS),
        "access-control-max-age": str(PREFLIGHT_S),
    }
    return Response(status_code=204, headers=answer)
