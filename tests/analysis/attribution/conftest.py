"""Clients of a tiny model in float64, of the default model, and of a linear toy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.analysis.attribution.linear_toy import LinearToy
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A random llama of three layers; a token a letter, and one before them."""
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float64", device="cpu")) as client:
        yield client


@pytest.fixture
def toy() -> LinearToy:
    return LinearToy()
