"""A client for the examples: of the server at `--url`, or of one that is started here and stopped afterwards."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from probewire.clients import Client

if TYPE_CHECKING:
    from collections.abc import Generator

START_TIMEOUT_S = 600.0
"""The first start fetches the default model."""


def arguments(description: str | None) -> argparse.Namespace:
    """`--url` and `--model`, which every example takes."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--url", default=None, help="grpc://host:50051 or http://host:8000; default: start a server")
    parser.add_argument("--model", default="", help="needed only where the server has several")
    return parser.parse_args()


@contextmanager
def connected(url: str | None) -> Generator[Client]:
    """A client of `url`; without one, of a server with the default model on free ports."""
    if url is not None:
        with Client(url) as client:
            yield client
        return
    with server() as address, Client(address) as client:
        yield client


@contextmanager
def server() -> Generator[str]:
    """Runs `probewire serve` and gives its gRPC address."""
    with addresses() as found:
        yield found["grpc"]


@contextmanager
def addresses() -> Generator[dict[str, str]]:
    """Runs `probewire serve` and gives its addresses by face: grpc, http."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder, "ready.json")
        ports = ("--port", "0", "--grpc-port", "0")
        print("starting a server with the default model …", flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "probewire.cli", "serve", *ports, "--ready-file", str(ready), "--state", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(ready, process)
            yield json.loads(ready.read_text())
        finally:
            process.terminate()
            process.wait()


def _wait_for(ready: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None:
            sys.exit(f"the server ended with status {process.returncode}; what it printed says why")
        if time.monotonic() > end:
            sys.exit(f"the server was not ready within {START_TIMEOUT_S:g} s")
        time.sleep(0.1)
