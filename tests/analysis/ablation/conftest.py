"""The planted model, and a task fitted to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from probewire.analysis.tasks import FittedTask, fit
from probewire.clients import Client
from tests.analysis.ablation.planted import TASK, client_of, plant
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("planted")
    with client_of(plant(tiny_checkpoint("llama", folder), folder / "planted")) as made:
        yield made


@pytest.fixture(scope="session")
def task(client: Client) -> FittedTask:
    return fit(TASK, client, 8)
