"""Who calls, and in which scheme, where a proxy stands between: what the app behind is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from probewire.server.api.http.proxies import BehindProxies
from probewire.server.auth.proxies import NO_PROXIES, Proxies

OURS = Proxies.of(["10.0.0.0/8"])


def seen(host: str | None, *headers: tuple[str, str], proxies: Proxies = OURS, kind: str = "http") -> dict[str, Any]:
    """The scope that reaches the app; the one that came in is left as it was."""
    scopes: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError("nothing is read or sent")

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "scheme": "http", "headers": raw, "client": None if host is None else (host, 1234)}
    before = dict(scope)
    asyncio.run(BehindProxies(app, proxies)(scope, nothing, nothing))
    assert scope == before
    return scopes[0]


def test_a_trusted_proxy_says_who_calls_and_how() -> None:
    scope = seen("10.0.0.2", ("x-forwarded-for", "6.6.6.6"), ("x-forwarded-proto", "HTTPS"))
    assert (scope["client"], scope["scheme"]) == (("6.6.6.6", 1234), "https")


@pytest.mark.parametrize("proxies", [OURS, NO_PROXIES])
def test_nobody_else_is_believed(proxies: Proxies) -> None:
    scope = seen("6.6.6.6", ("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", "https"), proxies=proxies)
    assert (scope["client"], scope["scheme"]) == (("6.6.6.6", 1234), "http")


def test_all_headers_of_the_name_are_read_in_order() -> None:
    headers = (("x-forwarded-for", "1.1.1.1, 6.6.6.6"), ("x-forwarded-for", "10.0.0.3"))
    assert seen("10.0.0.2", *headers)["client"] == ("6.6.6.6", 1234)


@pytest.mark.parametrize("scheme", ["", "ws", "javascript", "https, http"])
def test_a_scheme_that_is_none_changes_nothing(scheme: str) -> None:
    assert seen("10.0.0.2", ("x-forwarded-proto", scheme))["scheme"] == "http"


def test_a_proxy_that_says_nothing_is_the_caller() -> None:
    scope = seen("10.0.0.2")
    assert (scope["client"], scope["scheme"]) == (("10.0.0.2", 1234), "http")


def test_a_caller_has_one_spelling() -> None:
    assert seen("::ffff:6.6.6.6")["client"] == ("6.6.6.6", 1234)


def test_what_has_no_address_or_is_no_http_passes_untouched() -> None:
    assert seen(None, ("x-forwarded-for", "6.6.6.6"))["client"] is None
    assert seen("10.0.0.2", ("x-forwarded-for", "6.6.6.6"), kind="lifespan")["client"] == ("10.0.0.2", 1234)
