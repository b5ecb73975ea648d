"""Routes made of operations' rows: what reaches the operation, what is answered, and what is refused before."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from probewire.protos.activity import ActivityReport
from probewire.protos.errors import NotFound
from probewire.protos.operations import BY_NAME, Operation
from probewire.protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from probewire.protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from probewire.protos.spec import Capture, Hook, Plan
from probewire.server.api.http.app import create_app
from probewire.server.service import Operations

HOOK = {"site": "resid_post.1", "capture": {}}
PLAN = Plan((Hook("resid_post.1", capture=Capture()),))
SESSION = Session("ses-1", "mine", "m", PLAN, 2)
SAE = SaeInfo("a/b", "m", "resid_post.1", "topk", 8, 32, 4, "float32", "00")
ANSWERS: dict[str, Any] = {
    "create_session": SESSION,
    "update_session": SESSION,
    "session": SESSION,
    "sessions": [SESSION],
    "saes": [SAE, SAE],
    "load_sae": SAE,
    "send_sae": SaeReceived(5),
    "activity": ActivityReport(()),
}


class Recorder:
    """Answers what has no more than a row, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        self.error: Exception | None = None

    async def other(self, operation: Operation, *args: Any) -> Any:
        self.asked.append((operation.call, args))
        if self.error is not None:
            raise self.error
        return ANSWERS.get(operation.call)


class Box:
    """A REST app over a recorder."""

    def __init__(self) -> None:
        self.operations = Recorder()
        self.app: FastAPI = create_app(cast("Operations", self.operations), version="1", max_body_bytes=1000)

    def __call__(self, method: str, path: str, body: object = None, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, json=body, **options)

        return asyncio.run(call())

    def refused(self, method: str, path: str, body: object = None, status: int = 422) -> str:
        """The message of a refusal that never reached the operation."""
        answer = self(method, path, body)
        assert answer.status_code == status, answer.text
        assert self.operations.asked == []
        return answer.json()["error"]["message"]


@pytest.fixture
def box() -> Box:
    return Box()


@pytest.mark.parametrize(
    ("method", "path", "body", "call", "args"),
    [
        ("POST", "/v1/sessions", {"name": "mine", "plan": {"hooks": [HOOK]}, "model": "m"}, "create_session",
         (CreateSessionRequest(PLAN, "m", "mine"),)),
        ("POST", "/v1/sessions", {"hooks": [HOOK]}, "create_session", (CreateSessionRequest(PLAN),)),
        ("POST", "/v1/sessions", {"hooks": None, "plan": None}, "create_session", (CreateSessionRequest(),)),
        ("PUT", "/v1/sessions/ses-1", {"hooks": [HOOK], "revision": 3}, "update_session",
         (UpdateSessionRequest("ses-1", PLAN, 3),)),
        ("PUT", "/v1/sessions/ses-1", {"id": "ses-1"}, "update_session", (UpdateSessionRequest("ses-1"),)),
        ("GET", "/v1/sessions/ses-1", None, "session", ("ses-1",)),
        ("GET", "/v1/sessions", None, "sessions", ()),
        ("DELETE", "/v1/sessions/ses-1", None, "delete_session", ("ses-1",)),
        ("GET", "/v1/saes", None, "saes", ("",)),
        ("GET", "/v1/saes?model=org%2Fm", None, "saes", ("org/m",)),
        ("DELETE", "/v1/saes/a/b?model=m", None, "unload_sae", ("a/b", "m")),
        ("DELETE", "/v1/saes/a%2Fb", None, "unload_sae", ("a/b", "")),
        ("POST", "/v1/saes", {"source": "org/repo/x", "site": "resid_post.1"}, "load_sae",
         (LoadSaeRequest(source="org/repo/x", site="resid_post.1"),)),
        ("POST", "/v1/saes/parts", {"upload": "0" * 64, "n_bytes": 5, "data": "aGVsbG8="}, "send_sae",
         (SaePart("0" * 64, 5, 0, b"hello"),)),
        ("GET", "/v1/activity", None, "activity", ()),
    ],
)  # fmt: skip
def test_path_query_and_body_become_the_operations_arguments(
    box: Box, method: str, path: str, body: object, call: str, args: tuple[Any, ...]
) -> None:
    answer = box(method, path, body)
    assert answer.status_code == 200, answer.text
    assert box.operations.asked == [(call, args)]


def test_one_value_is_answered_as_it_is_and_several_under_their_name(box: Box) -> None:
    one = box("GET", "/v1/sessions/ses-1").json()
    assert (one["id"], one["revision"], one["plan"]["hooks"][0]["site"]) == ("ses-1", 2, "resid_post.1")
    assert box("GET", "/v1/sessions").json() == {"sessions": [one]}
    assert [sae["name"] for sae in box("GET", "/v1/saes").json()["saes"]] == ["a/b", "a/b"]


def test_what_has_no_answer_says_what_was_done_to_what(box: Box) -> None:
    assert box("DELETE", "/v1/sessions/ses-1").json() == {"status": "deleted", "id": "ses-1"}
    assert box("DELETE", "/v1/saes/a/b?model=m").json() == {"status": "unloaded", "name": "a/b"}


def test_a_refusal_of_the_operation_has_its_status(box: Box) -> None:
    box.operations.error = NotFound("no session 'x'; it was deleted, or never was")
    for method in ("GET", "DELETE"):
        answer = box(method, "/v1/sessions/x")
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, box.operations.error.message)


@pytest.mark.parametrize(
    ("method", "path", "body", "told"),
    [
        ("PUT", "/v1/sessions/a", {"id": "b"}, "the body names id 'b', the path 'a'; leave it out of the body"),
        ("PUT", "/v1/sessions/a", {"id": None}, "the body names id None, the path 'a'"),
        ("POST", "/v1/sessions", {"hooks": [HOOK], "plan": {}}, "give plan or hooks, not both"),
        ("POST", "/v1/sessions", {"name": 3}, "name"),
        ("POST", "/v1/sessions", {"nam": "x"}, "nam"),
        ("POST", "/v1/sessions", [], "the body must be a JSON object"),
        ("POST", "/v1/sessions?model=m", {}, "unknown query parameters ['model']; allowed: none"),
        ("GET", "/v1/saes?name=x", None, "unknown query parameters ['name']; allowed: model"),
        ("GET", "/v1/saes?model=a&model=b", None, "a query parameter is given twice"),
        ("DELETE", "/v1/saes/a?name=b", None, "unknown query parameters ['name']; allowed: model"),
        ("POST", "/v1/saes", {"hooks": []}, "hooks"),
    ],
)
def test_what_cannot_be_honoured_never_reaches_the_operation(
    box: Box, method: str, path: str, body: object, told: str
) -> None:
    assert told in box.refused(method, path, body)


def test_a_body_above_the_limit_is_413(box: Box) -> None:
    assert "1,000 bytes" in box.refused("POST", "/v1/sessions", {"name": "x" * 1000}, status=413)


def test_the_document_describes_each_row(box: Box) -> None:
    document = box.app.openapi()
    schemas = document["components"]["schemas"]
    for row in BY_NAME.values():
        if not row.summary or row.counted:
            continue
        verb, _, path = row.route.partition(" ")
        told = document["paths"][path.replace(":path", "")][verb.lower()]
        assert told["summary"] == row.summary
        assert told["responses"]["200"]["description"] == row.returns
        assert ("requestBody" in told) == (verb in ("POST", "PUT"))
    create = document["paths"]["/v1/sessions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(create["properties"]) == {"plan", "model", "name", "variants", "hooks"}
    names = {p["name"]: p["in"] for p in document["paths"]["/v1/saes/{name}"]["delete"]["parameters"]}
    assert names == {"name": "path", "model": "query"}
    assert "Session" in schemas
