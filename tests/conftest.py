"""Settings of the whole test process."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from unittest import mock

# Tiny models: a second thread costs more than it brings. Before torch is loaded, as each thread has a number of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Servers that tests start import the same files again and again: what is compiled is kept, whatever the shell says.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

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


class Leftovers:
    """What files of tests leave: models in cycles wait for a full collection, MLX keeps freed buffers, the C library pages."""

    GROWN_BYTES = 256 << 20
    """By which files may make the process larger before a collection: one after each would take a minute of the whole."""

    def __init__(self) -> None:
        self._held = self._resident_bytes()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
        """After a file's own fixtures have ended."""
        yield
        if nextitem is None or nextitem.path != item.path:
            if self._resident_bytes() > self._held + self.GROWN_BYTES:
                self._release()
                self._held = self._resident_bytes()
            self._held = min(self._held, self._resident_bytes())

    def _release(self) -> None:
        gc.collect()
        if (mlx := sys.modules.get("mlx.core")) is not None:
            mlx.clear_cache()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)

    def _resident_bytes(self) -> int:
        status = Path("/proc/self/statm")
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def pytest_configure(config: pytest.Config) -> None:
    """From the first file on."""
    config.pluginmanager.register(Leftovers())
