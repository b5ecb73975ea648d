"""The table of operations: what it says of those there are, and that a row and a function are a new one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import httpx
import pytest
import serving
from new_operation import ROW, put_in

from probewire.clients import AsyncClient, Client
from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import PermissionDenied
from probewire.protos.model import Input, Tokenized, TokenizeRequest
from probewire.protos.operations import BY_CALL, BY_NAME, OPERATIONS
from probewire.protos.service import Service
from probewire.server.api.http.app import create_app
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.auth.users import LOCAL, User
from probewire.server.worker.functions import FUNCTIONS
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

REQUEST = TokenizeRequest(Input("seven letters"))


@pytest.fixture
def _new() -> Generator[None]:
    """The tables with the new operation, for one test."""
    with mock.patch.dict(BY_NAME), mock.patch.dict(BY_CALL), mock.patch.dict(FUNCTIONS):
        put_in()
        yield


def test_every_method_of_the_contract_has_its_row() -> None:
    declared = {
        f"{service.name}.{method.name}": (method.input_type.name, method.output_type.name)
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    rows = {o.name: (o.message.DESCRIPTOR.name, o.answer_message.DESCRIPTOR.name) for o in OPERATIONS}
    assert rows == declared


def test_every_call_is_a_method_of_the_service() -> None:
    offered = {name for name in vars(Service) if not name.startswith("_")} - {"close", "health", "weight_names"}
    assert {o.call for o in OPERATIONS if not o.inner} == offered


def test_http_has_each_where_its_row_says() -> None:
    paths = create_app(mock.MagicMock(), version="test").openapi()["paths"]
    there = {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs}
    assert {re.sub(":path", "", o.route) for o in OPERATIONS if o.route} <= there


@pytest.mark.usefixtures("_new")
def test_a_row_and_a_function_are_a_new_operation(tmp_path: Path) -> None:
    """Over gRPC and HTTP, through the gateway to a worker's process, under its role."""
    folder = tiny_checkpoint("llama", tmp_path)

    async def main() -> None:
        with mock.patch.object(serving, "FAKES", replace(serving.FAKES, factory="new_operation:make")):
            async with serving.gateway(f"tiny={folder}@torch") as (it, server):
                async with AsyncClient(f"grpc://127.0.0.1:{server.port}") as client:
                    assert await client.call(ROW, REQUEST) == Tokenized((13,), ("local",), "tiny")
                transport = httpx.ASGITransport(create_app(it, version="test"))
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                    answer = await http.post("/v1/notes/letters", json={"input": {"text": "abc"}, "model": "tiny"})
                    assert answer.json()["token_ids"] == [3]
                    refused = await http.post("/v1/notes/letters", json={"inputs": []})
                    assert refused.status_code == 422
                    document = (await http.get("/openapi.json")).json()["paths"]["/v1/notes/letters"]["post"]
                    assert document["summary"] == ROW.summary
                CALLER.set(Caller(User("vic", "viewer"), "r1"))
                with pytest.raises(PermissionDenied, match=r"Notes\.Letters needs the role researcher"):
                    await it.other(ROW, REQUEST)

    asyncio.run(main())


@pytest.mark.usefixtures("_new")
def test_in_process_too(tmp_path: Path) -> None:
    with Client.inprocess(InProcessService.create(str(tiny_checkpoint("llama", tmp_path)), device="cpu")) as client:
        assert client.call(ROW, REQUEST).tokens == (LOCAL.name,)
