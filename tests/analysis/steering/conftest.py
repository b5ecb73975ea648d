"""A tiny model in this process, on either backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from probewire.clients import Client
from tests.parity.opened import Opened


@pytest.fixture(scope="package")
def opened_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    made = Opened(tmp_path_factory.mktemp("steering"))
    yield made
    made.close()


@pytest.fixture(params=["torch", "mlx"])
def tiny(request: pytest.FixtureRequest, opened_here: Opened) -> Client:
    return opened_here("llama", request.param, "float32")
