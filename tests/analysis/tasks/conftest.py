"""The default model, whose tokenizer knows words, and a tiny one that writes every letter as a token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def letters_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as client:
        yield client
