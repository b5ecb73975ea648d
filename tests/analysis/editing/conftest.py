"""Tiny random models in this process, and the default one where it must be real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

BACKENDS = ("torch", "mlx")


def opened(folder: Path, backend: str = "torch") -> Client:
    return Client.inprocess(InProcessService.create(str(folder), backend=backend, dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("editing"))


@pytest.fixture(scope="session")
def clients(tiny_folder: Path) -> Iterator[dict[str, Client]]:
    """One tiny llama on both backends."""
    made = {backend: opened(tiny_folder, backend) for backend in BACKENDS}
    yield made
    for client in made.values():
        client.close()


@pytest.fixture(scope="session")
def tiny(clients: dict[str, Client]) -> Client:
    return clients["torch"]
