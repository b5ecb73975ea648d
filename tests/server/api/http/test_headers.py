"""Headers that every answer carries, and those that a page of ours sets for itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from probewire.server.api.http.headers import DATA_HEADERS, PAGE_HEADERS, SafeHeaders


def sent(start: dict[str, Any], kind: str = "http") -> list[dict[str, Any]]:
    """What leaves the middleware when the app sends a start and a body."""
    found: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        await send({"type": "http.response.body", "body": b"x"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        found.append(dict(message))

    asyncio.run(SafeHeaders(app)({"type": kind}, receive, send))
    return found


def headers_of(message: dict[str, Any]) -> Headers:
    return Headers(raw=message["headers"])


@pytest.mark.parametrize("headers", [{}, {"headers": []}, {"headers": [(b"content-type", b"application/json")]}])
def test_an_answer_is_data_that_nobody_keeps(headers: dict[str, Any]) -> None:
    start, body = sent({"type": "http.response.start", "status": 200, **headers})
    told = headers_of(start)
    assert DATA_HEADERS.items() <= dict(told).items()
    assert told["x-content-type-options"] == "nosniff"
    assert told["cache-control"] == "no-store"
    assert told["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert len(told) == len(DATA_HEADERS) + len(headers.get("headers", ()))
    assert body == {"type": "http.response.body", "body": b"x"}


def test_a_page_keeps_the_headers_that_it_has_set() -> None:
    raw = [(name.encode(), value.encode()) for name, value in PAGE_HEADERS.items()]
    start, _ = sent({"type": "http.response.start", "status": 200, "headers": raw})
    assert start["headers"] == raw, "none is there twice"


def test_a_page_runs_nothing_from_elsewhere() -> None:
    policy = dict(part.split(" ", 1) for part in PAGE_HEADERS["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    for what, sources in policy.items():
        assert set(sources.split(" ")) <= {"'self'", "'none'", "data:", "blob:", "'script'"}, what
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"


def test_what_is_no_http_passes_untouched() -> None:
    start, _ = sent({"type": "http.response.start", "status": 200}, kind="websocket")
    assert "headers" not in start
