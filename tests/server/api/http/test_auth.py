"""The HTTP door: whose key a request carries, which paths are open, and deadlines that callers set themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from probewire.protos.errors import DeadlineExceeded
from probewire.server.api.http.auth import OPEN_PATHS, AuthMiddleware
from probewire.server.auth.access import Access
from probewire.server.auth.callers import CALLER
from probewire.server.auth.users import Users
from probewire.server.state.database import State

START = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b"ok"}
App = Callable[[Send], Awaitable[None]]


async def answers(send: Send) -> None:
    await send(START)
    await send(END)


async def hangs(send: Send) -> None:
    await asyncio.Event().wait()


async def begins_and_hangs(send: Send) -> None:
    await send(START)
    await asyncio.Event().wait()


class Door:
    """The middleware in front of an app of the test's."""

    def __init__(self, access: Access | None = None) -> None:
        self.access = access or Access()
        self.callers: list[Any] = []
        self.sent: list[Any] = []

    def ask(self, app: App = answers, path: str = "/v1/models", kind: str = "http", **headers: str) -> Any:
        """The status, and the error where there is one."""

        async def behind(scope: Scope, receive: Receive, send: Send) -> None:
            self.callers.append(CALLER.get(None))
            await app(send)

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.sent.append(message)

        async def scenario() -> None:
            CALLER.set(None)  # so that one who is not set is seen
            raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
            scope = {"type": kind, "path": path, "headers": raw, "client": ("6.6.6.6", 1)}
            scope["state"] = {"request_id": "req-7"}
            await AuthMiddleware(behind, self.access)(scope, receive, send)

        self.sent.clear()
        self.callers.clear()
        asyncio.run(scenario())
        body = b"".join(message.get("body", b"") for message in self.sent)
        return self.sent[0]["status"], None if body == b"ok" else json.loads(body)["error"]


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    state = State(tmp_path / "state")
    yield Users(state)
    state.close()


def test_a_key_says_who_calls(users: Users) -> None:
    key = users.add("ada", "viewer")
    door = Door(Access(users))
    assert door.ask(authorization=f"Bearer {key}") == (200, None)
    [caller] = door.callers
    assert (caller.user.name, caller.request_id, caller.peer) == ("ada", "req-7", "6.6.6.6")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer pw_wrong"}])
def test_without_a_good_key_the_app_is_never_reached(users: Users, headers: dict[str, str]) -> None:
    users.add("ada", "viewer")
    door = Door(Access(users))
    status, error = door.ask(**headers)
    assert (status, error["code"], error["request_id"]) == (401, "UNAUTHENTICATED", "req-7")
    assert dict(door.sent[0]["headers"])[b"www-authenticate"] == b"Bearer"
    assert door.callers == []


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_some_paths_tell_nothing_of_anybody_and_are_open(users: Users, path: str) -> None:
    users.add("ada", "viewer")
    door = Door(Access(users))
    assert door.ask(path=path) == (200, None)
    assert door.callers == [None]


@pytest.mark.parametrize("path", ["/health/", "/metrics", "/HEALTH", "/openapi.json/x", "/"])
def test_a_path_that_looks_like_one_of_them_is_not(users: Users, path: str) -> None:
    users.add("ada", "viewer")
    assert Door(Access(users)).ask(path=path)[0] == 401


def test_what_is_no_http_passes(users: Users) -> None:
    users.add("ada", "viewer")
    door = Door(Access(users))
    assert door.ask(kind="lifespan") == (200, None)
    assert door.callers == [None]


# ---- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e999", "soon", "", "1 s"])
def test_a_deadline_is_a_number_of_seconds(text: str) -> None:
    door = Door()
    status, error = door.ask(x_timeout_s=text)
    assert (status, error["code"]) == (422, "INVALID_ARGUMENT")
    assert error["message"] == f"x-timeout-s must be a number of seconds above 0, got {text!r}"
    assert door.callers == []


def test_a_request_that_ends_in_time_is_answered() -> None:
    assert Door().ask(x_timeout_s="60") == (200, None)


def test_a_deadline_that_passes_before_the_answer_is_a_504() -> None:
    status, error = Door().ask(hangs, x_timeout_s="0.01")
    assert (status, error["code"]) == (504, "DEADLINE_EXCEEDED")
    assert error["message"] == "the request did not end within x-timeout-s: 0.01"


def test_a_deadline_that_passes_within_the_answer_breaks_it_off() -> None:
    door = Door()
    with pytest.raises(DeadlineExceeded, match=r"x-timeout-s: 0\.01"):
        door.ask(begins_and_hangs, x_timeout_s="0.01")
    assert door.sent == [START], "nothing that would pass it off as whole"


def test_who_sets_none_may_wait() -> None:
    async def slow(send: Send) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await answers(send)

    assert Door().ask(slow) == (200, None)


@pytest.mark.parametrize("headers", [{}, {"x_timeout_s": "60"}])
def test_a_timeout_inside_is_not_the_callers_deadline(headers: dict[str, str]) -> None:
    async def fails(send: Send) -> None:
        raise TimeoutError("[Errno 110] a disk of the network")

    with pytest.raises(TimeoutError, match="a disk of the network"):
        Door().ask(fails, **headers)
