"""The tiny checkpoint that the files of this folder serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
