"""Lets the tests of this folder import what they share: fake_worker, rest_caller, serving …"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import pytest
from rest_caller import Caller, caller

from probewire.server.auth.callers import CALLER, local_caller


@pytest.fixture(autouse=True)
def _a_caller() -> None:
    """Tests that call operations directly have no door to come through."""
    CALLER.set(local_caller())


@pytest.fixture
def call() -> Caller:
    """The REST app over fresh pretended operations."""
    return caller()
