"""A tiny model in this process, on each backend in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint
from tests.tiny_tokenizers import VOCAB_SIZE, tokenizer_folder


@pytest.fixture(scope="module", params=["torch", "mlx"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A llama with a tokenizer that writes the shipped tasks' words as single tokens."""
    folder = tiny_checkpoint(
        "llama", tmp_path_factory.mktemp("reports"), vocab_size=VOCAB_SIZE, max_position_embeddings=512
    )
    tokenizer_folder("byte_level", folder)
    with Client.inprocess(InProcessService.create(str(folder), backend=request.param, dtype="float32")) as client:
        yield client
