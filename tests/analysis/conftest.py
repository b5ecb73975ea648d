"""The default model in this process, loaded once for whatever analyses it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService


@pytest.fixture(scope="session")
def default_client() -> Iterator[Client]:
    with Client.inprocess(InProcessService.create(dtype="float32", device="cpu")) as client:
        yield client
