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
