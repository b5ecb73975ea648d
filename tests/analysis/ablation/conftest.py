"""The planted model, and a task fitted to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from probewire.analysis.tasks import FittedTask, fit
from probewire.clients import Client
from tests.analysis.ablation.planted import TASK, client_of, plant
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    return plant(tiny_checkpoint("llama", folder), folder / "planted")


@pytest.fixture(scope="session")
def client(planted: Path) -> Iterator[Client]:
    with client_of(planted) as made:
        yield made


@pytest.fixture(scope="session")
def task(client: Client) -> FittedTask:
    return fit(TASK, client, 8)
