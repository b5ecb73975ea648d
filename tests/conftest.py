"""Settings of the whole test process."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from unittest import mock

# Tiny models: a second thread costs more than it brings. Before torch is loaded, as each thread has a number of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

torch.set_num_threads(1)  # where something had loaded it before

# What runs the tests in the background (nohup, `&` in a script) has these ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Servers that tests start keep nothing in the home folder of whoever runs them, and find no users there."""
    with mock.patch.dict(os.environ, XDG_STATE_HOME=str(tmp_path_factory.mktemp("state"))):
        yield


def pytest_collection_finish() -> None:
    """What stays to the end (libraries, tests) is not looked through by every collection: a twentieth of the time."""
    gc.collect()
    gc.freeze()
