"""A tiny random llama on the disk, and its client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from probewire.analysis.tuning.examples import TrainExample
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def client(folder: Path) -> Iterator[Client]:
    with Client.inprocess(InProcessService.create(str(folder), backend="torch", dtype="float32", device="cpu")) as made:
        yield made


@pytest.fixture(scope="session")
def lessons() -> list[TrainExample]:
    words = ["oak", "elm", "fir", "ash", "yew", "box", "bay", "fig"]
    return [
        TrainExample(f"a tree whose name is {word} is", " tall" if i % 2 else " low") for i, word in enumerate(words)
    ]
