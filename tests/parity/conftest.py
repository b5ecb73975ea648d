"""Models that the files of this folder share."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.parity.opened import Opened


@pytest.fixture(scope="package")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Generator[Opened]:
    """`opened(family, backend, dtype="float64")`: a client of a tiny model."""
    made = Opened(tmp_path_factory.mktemp("opened"))
    yield made
    made.close()
