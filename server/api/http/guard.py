"""Keeps web pages from driving the server: any page may send requests to any address that its visitor's browser reaches.

On a box without users nothing else would stop one: `POST /v1/models/unload` needs no key there.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ....protos.errors import FailedPrecondition, InvalidArgument, PermissionDenied, ProbewireError
from ....protos.hosts import canonical, is_loopback
from ...auth.origins import Authority, Origin
from .errors import error_response, request_id

__all__ = ["HostGuard", "PageGuard"]

LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing. Pages cannot read their answers: see `rest_cors`."""
OUR_SITE = frozenset({"same-origin", "none"})
"""What browsers say of a page of ours, and of an address that somebody typed."""

Refusal = tuple[int, ProbewireError]
"""An HTTP status, and what to say."""


class HostGuard:
    """Answers only to names that are the server's own: a page that rebinds its name to this machine stays outside."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        """`hosts`, canonical or `*.name`, come on top of loopback and of the address that a connection was made to."""
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await _pass_or_refuse(self._app, refusal, scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        given = Headers(scope=scope).getlist("host")
        if len(given) != 1:
            return 400, InvalidArgument(f"a request needs one Host header, and this one has {len(given)}")
        try:
            host = Authority.of(given[0]).host
        except InvalidArgument as error:
            return 400, error
        if is_loopback(host) or host in self._hosts or host == _own_address(scope):
            return None
        if f"*.{host.partition('.')[2]}" in self._hosts:
            return None
        return 421, FailedPrecondition(
            f"this server does not go by the name {host}; it answers to localhost, to the address it listens on, to the "
            f"names in its certificate and to those of --allowed-host. If that name is yours, start it with "
            f"`probewire serve --allowed-host {host}`; through an ssh tunnel, use http://localhost"
        )


class PageGuard:
    """Refuses what a page of somebody else's sends, and bodies that a browser would send without asking first."""

    def __init__(self, app: ASGIApp, origins: Iterable[Origin]) -> None:
        """Pages of `origins` may do what ours may."""
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await _pass_or_refuse(self._app, refusal, scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if not _is_a_browsers(headers):
            return None
        if scope["method"] not in LOOKING and not _has_key(headers) and not self._is_ours(scope, headers):
            return 403, PermissionDenied(_foreign(scope, headers))
        if _has_body(headers) and not _is_json(headers):
            return 415, InvalidArgument(
                f"a browser's request must have content-type: application/json, got "
                f"{headers.get('content-type', 'none')[:80]!r}: browsers send other bodies from any page, unasked"
            )
        return None

    def _is_ours(self, scope: Scope, headers: Headers) -> bool:
        try:
            origins = [Origin.of(text) for text in headers.getlist("origin")]
        except InvalidArgument:  # `null`: a sandboxed frame, a local file, a request that was redirected
            return False
        if origins and self._origins.issuperset(origins):
            return True  # browsers call such a page cross-site, and the operator has named it all the same
        sites = {text.strip().lower() for text in headers.getlist("sec-fetch-site")}
        if not sites <= OUR_SITE:
            return False
        host = Authority.of(headers["host"])
        # Behind a proxy that ends TLS the schemes differ; then the browser's own word for it counts.
        return all(
            origin.is_at(host) and (origin.scheme == scope["scheme"] or sites == {"same-origin"}) for origin in origins
        )


async def _pass_or_refuse(app: ASGIApp, refusal: Refusal | None, scope: Scope, receive: Receive, send: Send) -> None:
    if refusal is None:
        await app(scope, receive, send)
    else:
        status, error = refusal
        await error_response(error, request_id(scope), status)(scope, receive, send)


def _own_address(scope: Scope) -> str | None:
    server = scope.get("server")
    return canonical(server[0]) if server else None


def _is_a_browsers(headers: Headers) -> bool:
    return any(name == "origin" or name.startswith("sec-fetch-") for name in headers)


def _has_key(headers: Headers) -> bool:
    """A page sets one only after the browser has asked us. Basic and the like browsers add by themselves, to any page's."""
    return all(text[:7].lower() == "bearer " for text in headers.getlist("authorization") or [""])


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


def _is_json(headers: Headers) -> bool:
    types = [text.partition(";")[0].strip().lower() for text in headers.getlist("content-type")]
    return types == ["application/json"]


def _foreign(scope: Scope, headers: Headers) -> str:
    try:
        page = Origin.of(headers.get("origin", "")).text
        fix = f"`probewire serve --allowed-origin {page}`"
    except InvalidArgument:
        page, fix = "another site", "`probewire serve --allowed-origin` with the page's origin (a local file has none)"
    return (
        f"a page of {page} may not send {scope['method']} to {headers['host'][:80]} without a key. If the page is yours, "
        f"start the server with {fix}; a proxy in front must pass on the Host that the browser sent. Scripts and "
        "notebooks are not concerned"
    )
