"""Circuits to keep in libraries, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.circuits import Circuit, Claim, Origin, Space
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

SPACE = Space(("z.0", "z.1", "z.2"), None, "head", 4)


def made(name: str, *heads: int, hash_: str = "abc", version: str = "1", **card: object) -> Circuit:
    """A circuit of the heads at these flat indices."""
    mask = np.zeros(SPACE.size, dtype=bool)
    mask[list(heads)] = True
    origin = Origin("tiny-llama", hash_, "ioi", "logit difference", "patch", "RelP", 0.8, 0.1)
    return Circuit.of(SPACE, mask.reshape(SPACE.shape), np.arange(12.0).reshape(SPACE.shape), origin).with_card(
        name=name, version=version, **card
    )


NAMES = made(
    "ioi-heads",
    1,
    5,
    11,
    category="syntax/names",
    description="Who gets the drink: heads that carry the indirect object to the end.",
    tags=("names", "english"),
    claims=(Claim("z.2 head 3", "name mover", "name_mover", 0.3),),
)
NUMBERS = made("greater-than", 2, 5, category="arithmetic", description="Years that come later.", tags=("numbers",))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A random llama of three layers and four heads; a token a letter, and one before them."""
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float64", device="cpu")) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "circuits"
