"""A tiny plain checkpoint, and an empty cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers in float32, with a head of its own."""
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("plain"), num_hidden_layers=2)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
