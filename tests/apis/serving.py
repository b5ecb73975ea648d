"""One `probewire serve` as a process of its own, over a tiny real checkpoint on both backends."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import psutil

from probewire.backends.model.limits import Limits
from probewire.server.config import RequestLimits

__all__ = ["BACKENDS", "DEADLINE_S", "ENGINE", "LIMITS", "Served", "eventually", "serving"]

BACKENDS = ("torch", "mlx")
"""Ids of the models, too."""

DEADLINE_S = 60.0

ENGINE = Limits(n_slots=2, context_tokens=4096, cache_tokens=2560, chunk_tokens=16)
"""A long prompt is read in chunks, two callers fill the slots, and the cache holds less than the context."""
LIMITS = RequestLimits(max_request_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class Served:
    """A running server, and connections to it."""

    http: str
    """http://host:port."""
    grpc: str
    """host:port."""
    web: httpx.Client
    channel: grpc.Channel
    pid: int
    log: Path
    folder: Path
    """The checkpoint."""

    def worker(self, model: str) -> psutil.Process:
        """The process that holds a model now."""
        pids = re.findall(rf"model {model} is ready \(pid (\d+)", self.log.read_text())
        return psutil.Process(int(pids[-1]))


@contextmanager
def serving(
    folder: Path,
    scratch: Path,
    *options: str,
    backends: Sequence[str] = BACKENDS,
    verify: ssl.SSLContext | bool = True,
) -> Generator[Served]:
    """Start the command, wait until its models serve, and end it: no process is left."""
    ready, log = scratch / "ready.json", scratch / "serve.log"
    ready.unlink(missing_ok=True)
    models = [f"{backend}={folder}@{backend}" for backend in backends]
    sizes = ["--slots", ENGINE.n_slots, "--context", ENGINE.context_tokens, "--cache-tokens", ENGINE.cache_tokens]
    sizes += ["--chunk", ENGINE.chunk_tokens, "--max-request-mib", LIMITS.max_request_bytes >> 20]
    network = ["--port", "0", "--grpc-port", "0", "--drain", "2", "--ready-file", str(ready)]
    network += ["--state", str(scratch / "state")]
    command = [sys.executable, "-m", "probewire.cli", "serve", *models, *map(str, sizes), *network, *options]
    # One thread, as the tests' own process has: sums in another order would differ in their last bits.
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process,
    ):
        try:
            eventually(lambda: ready.exists() or process.poll() is not None, "the server is ready")
            assert process.poll() is None, log.read_text()
            where = json.loads(ready.read_bytes())
            address = where["grpc"].removeprefix("grpcs://").removeprefix("grpc://")
            with (
                httpx.Client(base_url=where["http"], timeout=DEADLINE_S, trust_env=False, verify=verify) as web,
                grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel,
            ):
                yield Served(where["http"], address, web, channel, process.pid, log, folder)
        finally:
            workers = psutil.Process(process.pid).children() if process.poll() is None else []
            process.terminate()
            try:
                process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            _, left = psutil.wait_procs(workers, timeout=10)
            for worker in left:
                worker.kill()
    assert not left, f"workers outlived the server: {left}"
    assert process.returncode == 0, log.read_text()


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Poll until true; fail after `timeout_s`."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"never came true: {what}"
        time.sleep(0.02)
