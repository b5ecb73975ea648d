"""The worker process: one model, served over the gRPC API on a private socket. Started by `server/gateway/process.py`."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import pkgutil
import signal
import sys
import threading
import time
from typing import Any

import orjson

from ...protos.errors import Internal, ProbewireError
from ...protos.wire.codec import from_json
from ..api.grpc.service import RpcServer, admit_from_the_gateway
from ..config import Factory, WorkerConfig
from ..memory import keep_freed_memory

__all__ = ["main"]

log = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.1


class ReportPipe:
    """Reports to the gateway, a JSON object a line, on what was standard output; from now on prints go to the log."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.set_inheritable(self._fd, False)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._last: tuple[str, float] = ("", 0.0)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Say how the load goes, from any thread; at most ten times a second a stage."""
        total = total or 0
        now = time.monotonic()
        if self._last[0] == stage and now - self._last[1] < REPORT_INTERVAL_S and done < total:
            return
        self._last = (stage, now)
        self._send({"stage": stage, "done": done, "total": total})

    def ready(self) -> None:
        """Say that the socket is open."""
        self._send({"ready": True})

    def error(self, error: ProbewireError) -> None:
        """Say why it cannot load."""
        self._send({"error": error.code.name, "message": error.message})

    def _send(self, report: dict[str, Any]) -> None:
        with self._lock:
            os.write(self._fd, orjson.dumps(report) + b"\n")


SWITCH_S = 0.0001
"""How long a thread that computes in Python may keep the others waiting. The model's thread lets go of the interpreter at
each of a step's thousand operations; with Python's own 5 ms, a large request being checked would cost it seconds a step."""


def main() -> None:
    """Read the config, load, serve until SIGTERM or until the gateway is gone."""
    reports = ReportPipe()
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("probewire").setLevel(logging.INFO)
    config = from_json(WorkerConfig, orjson.loads(sys.stdin.buffer.readline()))
    _end_with_the_gateway()
    sys.setswitchinterval(SWITCH_S)
    code = asyncio.run(_serve(config, reports))
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # threads of the tensor libraries may hold a normal exit up


async def _serve(config: WorkerConfig, reports: ReportPipe) -> int:
    loop = asyncio.get_running_loop()
    told_to_end = asyncio.Event()
    loading = True

    def end() -> None:
        if loading:
            os._exit(0)
        told_to_end.set()

    loop.add_signal_handler(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        factory: Factory = pkgutil.resolve_name(config.factory)
        operations = await factory(config, reports.progress)
        server = RpcServer(
            operations, admit_from_the_gateway, inner=True, max_request_bytes=config.limits.max_request_bytes
        )
        server.bind(config.address)
        await server.start()
    except ProbewireError as error:
        reports.error(error)
        return 1
    except Exception as error:
        log.exception("loading %s failed", config.model)
        reports.error(Internal(f"loading {config.model!r} failed: {type(error).__name__}: {error}"))
        return 1
    loading = False
    reports.ready()
    await told_to_end.wait()
    await server.stop(config.drain_s)
    close = getattr(operations, "close", None)
    if close is not None:
        await close()
    return 0


def _end_with_the_gateway() -> None:
    """Our standard input closes when the gateway is gone, however it went; on Linux the kernel tells us as well."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        while sys.stdin.buffer.read(1 << 16):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="gateway watch", daemon=True).start()


if __name__ == "__main__":
    main()
