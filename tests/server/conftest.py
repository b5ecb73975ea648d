"""Lets the tests of this folder import what they share: fake_worker and serving."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import pytest

from probewire.server.callers import CALLER, local_caller


@pytest.fixture(autouse=True)
def _a_caller() -> None:
    """Tests that call operations directly have no door to come through."""
    CALLER.set(local_caller())
