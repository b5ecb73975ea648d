"""Which pages may read answers: preflights and marks, by the origins that the operator has named."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from probewire.server.api.http.cors import Cors
from probewire.server.auth.origins import Origin

TOOL, HUB = "https://tool.lab", "http://hub.lab:8080"


class Told:
    """An answer, and whether the app behind was asked."""

    def __init__(self) -> None:
        self.asked = False
        self.status = 0
        self.headers = Headers()
        self.body = b""


def asked(method: str, *headers: tuple[str, str], origins: tuple[str, ...] = (TOOL, HUB), kind: str = "http") -> Told:
    told = Told()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.asked = True
        await PlainTextResponse("ok", headers={"vary": "accept"})({"type": "http"}, receive, send)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            told.status, told.headers = message["status"], Headers(raw=message["headers"])
        told.body += message.get("body", b"")

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "method": method, "headers": raw, "state": {"request_id": "req-1"}}
    asyncio.run(Cors(app, map(Origin.of, origins))(scope, receive, send))
    return told


def preflight(origin: str, *more: tuple[str, str], **options: Any) -> Told:
    return asked("OPTIONS", ("origin", origin), ("access-control-request-method", "POST"), *more, **options)


@pytest.mark.parametrize("origin", [TOOL, HUB, "HTTPS://Tool.Lab", "https://tool.lab:443"])
def test_a_preflight_of_a_named_page_is_granted_and_goes_no_further(origin: str) -> None:
    told = preflight(origin)
    assert (told.status, told.body, told.asked) == (204, b"", False)
    assert told.headers["access-control-allow-origin"] == origin, "as it was sent"
    assert told.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE"
    assert told.headers["access-control-allow-headers"] == "authorization, content-type, x-timeout-s"
    assert told.headers["access-control-max-age"] == "600"
    assert told.headers["vary"] == "origin"


def test_a_preflight_allows_the_headers_that_it_asks_for() -> None:
    told = preflight(TOOL, ("access-control-request-headers", "x-mine, content-type"))
    assert told.headers["access-control-allow-headers"] == "x-mine, content-type"


@pytest.mark.parametrize(
    "origin",
    ["http://tool.lab", "https://tool.lab:8443", "https://sub.tool.lab", "https://tool.lab.evil", "null", "*", "", "x"],
)
def test_a_preflight_of_any_other_page_is_refused_with_the_fix(origin: str) -> None:
    told = preflight(origin)
    assert (told.status, told.asked) == (403, False)
    error = json.loads(told.body)["error"]
    assert (error["code"], error["request_id"]) == ("PERMISSION_DENIED", "req-1")
    assert "--allowed-origin ORIGIN" in error["message"]
    assert not [name for name in told.headers if name.startswith("access-control-")]


def test_without_any_origin_no_preflight_is_granted() -> None:
    assert preflight(TOOL, origins=()).status == 403


def test_two_origins_are_none() -> None:
    assert preflight(TOOL, ("origin", TOOL)).status == 403
    told = asked("GET", ("origin", TOOL), ("origin", TOOL))
    assert "access-control-allow-origin" not in told.headers


def test_an_answer_to_a_named_page_may_be_read_without_credentials() -> None:
    told = asked("POST", ("origin", HUB))
    assert (told.asked, told.status, told.body) == (True, 200, b"ok")
    assert told.headers["access-control-allow-origin"] == HUB
    assert told.headers["access-control-expose-headers"] == "x-request-id, retry-after"
    assert "access-control-allow-credentials" not in told.headers


@pytest.mark.parametrize("headers", [(), (("origin", "https://evil.example"),)])
def test_an_answer_to_anybody_else_is_not_marked_and_no_cache_mixes_them_up(headers: tuple[Any, ...]) -> None:
    told = asked("GET", *headers)
    assert told.asked
    assert "access-control-allow-origin" not in told.headers
    assert {part.strip() for part in told.headers["vary"].lower().split(",")} == {"accept", "origin"}


def test_where_no_page_is_named_answers_are_as_they_were() -> None:
    assert asked("GET", ("origin", TOOL), origins=()).headers["vary"] == "accept"


def test_options_without_a_question_is_for_the_app() -> None:
    assert asked("OPTIONS", ("origin", TOOL)).asked


def test_what_is_no_http_passes() -> None:
    assert asked("OPTIONS", ("access-control-request-method", "POST"), kind="lifespan").asked
