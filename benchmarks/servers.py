"""A probewire server for a section, on free ports, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from child import log_file

from probewire.backends.checkpoints import resolve_model
from probewire.server.auth.users import Users
from probewire.server.state.database import State

__all__ = ["Served", "model_folder", "probewire"]

START_S = 600.0
STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    grpc: str
    """As a client takes it: grpc://127.0.0.1:…"""
    http: str
    gateway: psutil.Process
    keys: tuple[str, ...] = ()
    """Of the users, in their order."""

    @property
    def worker(self) -> psutil.Process:
        """The process that holds the model."""
        found = [child for child in self.gateway.children() if any("worker_main" in part for part in child.cmdline())]
        (worker,) = found
        return worker


def model_folder() -> Path:
    """The default model's checkpoint, fetched when it is not there."""
    return resolve_model("").folder


@contextmanager
def probewire(
    backend: str, *, dtype: str = "bfloat16", users: Sequence[str] = (), options: Sequence[str] = ()
) -> Generator[Served]:
    """The default model served on the CPU, to users with keys if there are any; ended on the way out."""
    log = log_file(f"serve-{backend}")
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        ready = Path(folder) / "ready.json"
        model = ["--backend", backend, "--device", "cpu", "--dtype", dtype]
        state = Path(folder) / "state"
        keys = tuple(_added(state, user) for user in users)
        network = ["--port", "0", "--grpc-port", "0", "--ready-file", str(ready), "--state", str(state)]
        command = [sys.executable, "-m", "probewire.cli", "serve", *model, *network, *options]
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            _wait(server, ready, log)
            found = json.loads(ready.read_text())
            yield Served(found["grpc"], found["http"], psutil.Process(server.pid), keys)
        finally:
            stop(server)


def _added(folder: Path, name: str) -> str:
    state = State(folder)
    try:
        return Users(state).add(name, "researcher")
    finally:
        state.close()


def _wait(server: subprocess.Popen[bytes], ready: Path, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not ready.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start; its last words:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then insist."""
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
