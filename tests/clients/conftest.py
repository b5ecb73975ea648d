"""Lets the tests of this folder import what they share, and gives them a client over each transport."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from fake_server import FakeServer
from fake_service import FakeService

from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

TRANSPORTS = ("inprocess", "grpc", "rest")


@pytest.fixture(scope="session")
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeService())
    yield server
    server.stop()


@pytest.fixture
def service(server: FakeServer) -> FakeService:
    """The fake behind every transport, as new."""
    fresh = FakeService()
    server.service.__dict__.update(fresh.__dict__)
    return server.service


@pytest.fixture(params=TRANSPORTS)
def client(request: pytest.FixtureRequest, server: FakeServer, service: FakeService) -> Iterator[Client]:
    """A client over each transport in turn."""
    if request.param == "inprocess":
        yield Client(service=service)
        return
    with Client(server.grpc_url if request.param == "grpc" else server.http_url, timeout_s=20) as client:
        yield client


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A random llama of three layers in this process, in float64; a token a letter, and one before them."""
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float64", device="cpu")) as client:
        yield client
