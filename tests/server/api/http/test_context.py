"""What routes are handed, and how they describe themselves in OpenAPI."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fake_model import FakeOperations

from probewire.protos.errors import Code, NotFound, ResourceExhausted
from probewire.protos.model import Input, Tokenized, TokenizeRequest
from probewire.protos.operations import Operation
from probewire.protos.wire.error_body import error_to_json
from probewire.server.api.http.context import Api, body_doc, content, ok
from probewire.server.auth.users import LOCAL

TEXT = {"type": "string"}


class WithOther(FakeOperations):
    """Answers by rows too."""

    async def other(self, operation: Operation, *args: Any) -> str:
        return f"{operation.name}{args}"


@pytest.fixture
def api() -> Api:
    return Api(WithOther(), "1", 1000)


def test_an_operation_is_asked_for_by_its_call(api: Api) -> None:
    assert asyncio.run(api.ask("tokenize", TokenizeRequest(Input("a")))) == Tokenized((97,), ("a",), "a", (b"a",))
    assert asyncio.run(api.ask("session", "ses-1")) == "Sessions.Get('ses-1',)"
    with pytest.raises(NotFound, match="no model 'x'"):
        asyncio.run(api.ask("describe", "x"))


def test_by_default_everybody_is_let_in_and_each_app_counts_for_itself(api: Api) -> None:
    assert api.access.enter("", "6.6.6.6").user is LOCAL
    other = Api(WithOther(), "1", 1000)
    assert api.metrics is not other.metrics
    assert api.schemas is not other.schemas
    assert 0 <= time.time() - api.started_at < 3600


def test_a_media_type_has_its_schema() -> None:
    assert content(("a/b", TEXT), ("c/d", {})) == {"a/b": {"schema": TEXT}, "c/d": {"schema": {}}}
    assert content() == {}


@pytest.mark.parametrize("required", [True, False])
def test_a_body_is_json(required: bool) -> None:
    assert body_doc(TEXT, required=required) == {
        "requestBody": {"required": required, "content": {"application/json": {"schema": TEXT}}}
    }
    assert body_doc(TEXT)["requestBody"]["required"] is True


def test_a_good_answer_stands_beside_the_shape_of_all_others() -> None:
    told = ok("The thing", ("a/b", TEXT))
    assert told[200] == {"description": "The thing", "content": {"a/b": {"schema": TEXT}}}
    assert list(told["default"]["content"]) == ["application/json"]


@pytest.mark.parametrize(
    "body",
    [
        error_to_json(NotFound("no such thing"), "req-1"),
        error_to_json(ResourceExhausted("too much", retry_after_s=2.0), "req-1"),
        error_to_json(NotFound("no request id")),
    ],
)
def test_an_error_has_the_shape_that_is_described(body: dict[str, Any]) -> None:
    schema = ok("")["default"]["content"]["application/json"]["schema"]["properties"]["error"]
    error = body["error"]
    assert set(error) <= set(schema["properties"])
    assert set(schema["required"]) <= set(error)
    kinds = {"string": str, "number": float}
    for name, value in error.items():
        told = schema["properties"][name]
        assert isinstance(value, kinds[told["type"]]) or (value is None and told["nullable"])
    assert error["code"] in Code.__members__
