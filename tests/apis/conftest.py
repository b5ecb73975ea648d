"""One real server for the whole folder."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.apis.hostile_box import Box
from tests.apis.serving import BACKENDS, Served, serving
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of three layers with room for a long generation."""
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("apis"), max_position_embeddings=4096)


@pytest.fixture(scope="session")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """`probewire serve` with the checkpoint on both backends."""
    with serving(checkpoint, tmp_path_factory.mktemp("serve")) as served:
        yield served


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest) -> str:
    """Each backend in turn; the model's id is its backend's name."""
    return str(request.param)


@pytest.fixture(scope="module")
def truth(box: Box) -> tuple[Any, ...]:
    """What a good request says before anybody has attacked the module's own box, and who says it."""
    return box.truth(), box.pids()


@pytest.fixture
def unharmed(box: Box, truth: tuple[Any, ...]) -> Generator[None]:
    """After each attack a good request is answered as before it, by the same processes."""
    yield
    assert (box.truth(), box.pids()) == truth
