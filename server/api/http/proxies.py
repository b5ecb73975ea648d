"""Who calls, and in which scheme, where a proxy stands between."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ...auth.proxies import FORWARDED_FOR, Proxies

__all__ = ["BehindProxies"]


class BehindProxies:
    """Sets a request's client and scheme to what a trusted proxy says of them; nobody else is believed."""

    def __init__(self, app: ASGIApp, proxies: Proxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("client"):
            host, port = scope["client"]
            headers = Headers(scope=scope)
            caller = self._proxies.caller(host, headers.getlist(FORWARDED_FOR))
            scope = {**scope, "client": (caller, port)}
            scheme = headers.get("x-forwarded-proto", "").lower()
            if scheme in ("http", "https") and self._proxies.trust(host):
                scope["scheme"] = scheme
        await self._app(scope, receive, send)
