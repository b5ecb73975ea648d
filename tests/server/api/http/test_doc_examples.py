"""The requests that /docs shows: one for each route that needs a body, and every one of them a good one."""

from __future__ import annotations

import numpy as np
import pytest
from fake_model import FakeOperations
from rest_caller import Caller

from probewire.protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from probewire.protos.spec import Plan
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.stored import LoadVariantRequest, VariantFile
from probewire.protos.variants.variant import Variant
from probewire.server.api.http.app import create_app
from probewire.server.api.http.doc_examples import BODIES


class WithSessions(FakeOperations):
    """Takes sessions, too."""

    async def create_session(self, request: CreateSessionRequest) -> Session:
        return Session("ses-1", request.name, "fake/model", request.plan, 1)

    async def update_session(self, request: UpdateSessionRequest) -> Session:
        return Session(request.id, "", "fake/model", request.plan or Plan(), 2)


@pytest.mark.parametrize("method_path", BODIES, ids=" ".join)
def test_each_example_is_a_good_request(method_path: tuple[str, str]) -> None:
    """On a model of another kind than any of them was written for."""
    method, path = method_path
    operations = WithSessions()
    call = Caller(create_app(operations, version="1"), operations)
    model = BODIES[method_path].get("model", "")
    if "{name}" in path:
        made = Variant({"w_o.0": Delta(np.ones((2, 1)), np.ones((1, 2)))}).files()
        files = tuple(VariantFile(name, data) for name, data in made.items())
        operations.kept.load(LoadVariantRequest(name="mine", files=files))
    if path == "/v1/models/unload":
        operations.loaded[model] = operations.loaded["fake/model"]
    answer = call(method.upper(), path.replace("{id}", "ses-1").replace("{name}", "mine"), BODIES[method_path])
    assert answer.status_code == 200, answer.text


def test_every_request_with_a_body_has_an_example(call: Caller) -> None:
    document = call.get("/openapi.json").json()
    needed = {
        (method, path)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if operation.get("requestBody", {}).get("required")
    }
    assert needed == set(BODIES)
