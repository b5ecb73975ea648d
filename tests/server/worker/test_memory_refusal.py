"""A model that will not fit: the load is refused with figures, on both APIs, before anything is taken."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from serving import Served, broken, served

from probewire.backends.model.footprint import footprint
from probewire.backends.model.limits import Limits
from probewire.protos import probewire_pb2 as pb
from probewire.server.api.http.app import create_app
from probewire.server.config import GatewayConfig, WorkerConfig
from probewire.server.gateway.gateway import Gateway
from tests.tiny_models import tiny_checkpoint

TOO_MUCH = Limits(cache_tokens=10**12)
"""768 bytes a position of the tiny llama: hundreds of terabytes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def box() -> AsyncGenerator[tuple[Gateway, Served]]:
    """A gateway whose workers are the real ones."""
    it = Gateway(GatewayConfig(worker=WorkerConfig(model="", id="", backend="auto", engine=TOO_MUCH)))
    try:
        async with served(it, streams=it.streams) as server:
            yield it, server
    finally:
        await it.close()


def says_how_much(message: str, folder: Path) -> None:
    need = footprint(folder, "auto", TOO_MUCH)
    assert f"loading {str(folder)!r} takes about {need.total / 2**30:.2f} GiB" in message
    assert f"KV cache of 1,000,000,000,000 positions {need.cache / 2**30:.2f} GiB" in message
    free = re.search(r"and (\d+\.\d\d) GiB are free; unload another model, .* lower --cache-tokens", message)
    assert free is not None, message
    assert 0 < float(free[1]) < need.total / 2**30


def test_over_grpc(folder: Path) -> None:
    async def scenario() -> None:
        async with box() as (it, server):
            asked = pb.LoadRequest(model=str(folder), id="big", backend="torch").SerializeToString()
            error = await broken(server.channel.unary_stream("/probewire.v1.Models/Load")(asked))
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            says_how_much(error.details() or "", folder)
            assert it.workers == {}

    asyncio.run(scenario())


def test_over_http(folder: Path) -> None:
    async def scenario() -> None:
        async with box() as (it, _):
            transport = httpx.ASGITransport(create_app(it, version="test", access=it.policy.access))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
                body = {"model": str(folder), "id": "big", "backend": "mlx"}
                answer = await client.post("/v1/models/load", json=body)
            assert answer.status_code == 409
            error = answer.json()["error"]
            assert error["code"] == "FAILED_PRECONDITION"
            says_how_much(error["message"], folder)
            assert it.workers == {}

    asyncio.run(scenario())
