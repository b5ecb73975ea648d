"""The app as it is put together: which door stands before which, and one document of it all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeOperations
from rest_caller import Caller, error_of

from probewire.protos.errors import InvalidArgument
from probewire.server.api.http.app import create_app
from probewire.server.api.http.doc_examples import BODIES
from probewire.server.auth.access import Access
from probewire.server.auth.proxies import Proxies
from probewire.server.auth.users import Users
from probewire.server.metrics import Metrics
from probewire.server.state.database import State

TOOL = "https://tool.lab"


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    state = State(tmp_path / "state")
    yield Users(state)
    state.close()


def box(**options: Any) -> Caller:
    operations = FakeOperations()
    return Caller(create_app(operations, version="1.2.3", allowed_hosts=["test"], **options), operations)


def test_an_unknown_host_is_refused_before_a_key_is_looked_at(users: Users) -> None:
    refused: list[tuple[str, str]] = []
    key = users.add("ada", "viewer")
    call = box(access=Access(users, lambda api, kind: refused.append((api, kind))))
    headers = {"authorization": "Bearer pw_wrong"}
    assert call.get("/v1/models", headers={**headers, "host": "evil.example"}).status_code not in (200, 401)
    assert refused == []
    assert call.get("/v1/models", headers=headers).status_code == 401
    assert refused == [("http", "wrong")]
    assert call.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_a_named_page_may_read_that_its_key_is_wrong(users: Users) -> None:
    users.add("ada", "viewer")
    call = box(access=Access(users), allowed_origins=[TOOL])
    answer = call.get("/v1/models", headers={"origin": TOOL})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, TOOL)


@pytest.mark.parametrize("headers", [{}, {"host": "evil.example"}, {"origin": "https://evil.example"}])
@pytest.mark.parametrize("path", ["/v1/models", "/nothing", "/docs"])
def test_every_answer_has_an_id_and_safe_headers_and_is_counted(path: str, headers: dict[str, str]) -> None:
    metrics = Metrics()
    call = box(metrics=metrics)
    answer = call.get(path, headers=headers)
    assert answer.headers["x-request-id"].startswith("req-")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert f'code="{answer.status_code}",method="GET"' in metrics.text().decode()


def test_a_proxy_says_who_guesses(users: Users) -> None:
    users.add("ada", "viewer")
    call = box(access=Access(users), proxies=Proxies.of(["127.0.0.1"]))
    headers = {"authorization": "Bearer pw_wrong", "x-forwarded-for": "6.6.6.6"}
    for _ in range(20):
        assert call.get("/v1/models", headers=headers).status_code == 401
    slowed = call.get("/v1/models", headers=headers)
    assert (slowed.status_code, "6.6.6.6" in error_of(slowed)["message"]) == (429, True)
    other = call.get("/v1/models", headers={**headers, "x-forwarded-for": "7.7.7.7"})
    assert other.status_code == 401


def test_bodies_are_bounded() -> None:
    call = box(max_body_bytes=100)
    assert call.post("/v1/tokenize", {"text": "x" * 50}).status_code == 200
    assert call.post("/v1/tokenize", {"text": "x" * 100}).status_code == 413


def test_an_origin_that_is_none_is_refused_when_the_app_is_made() -> None:
    with pytest.raises(InvalidArgument, match="is no page's origin"):
        box(allowed_origins=["tool.lab"])


def test_one_document_has_every_schema_that_it_refers_to_and_its_examples() -> None:
    document = box().app.openapi()
    assert (document["info"]["title"], document["info"]["version"]) == ("probewire", "1.2.3")
    schemas = document["components"]["schemas"]
    references = set(_references(document))
    assert len(references) > 20
    assert {name.removeprefix("#/components/schemas/") for name in references} <= set(schemas)
    for (method, path), body in BODIES.items():
        assert document["paths"][path][method]["x-example"] == {"body": body}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def test_the_document_is_made_once() -> None:
    app = box().app
    assert app.openapi() is app.openapi()
