"""One run of a worker: the process, what it reports while it loads, its log, and its end.

The worker reads its config as the first line of its standard input and ends when that closes, so none outlives the
gateway. It reports on its standard output, a JSON object a line: {"stage", "done", "total"}, {"ready": true} or
{"error": code, "message"}. What it writes to standard error goes to the gateway's log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, cast

import orjson

from ...protos.errors import Code, Internal, ProbewireError, Unavailable, error_from_code
from ...protos.loading import LoadProgress
from ...protos.wire.codec import to_json
from ..config import WORKER_MODULE, WorkerConfig

__all__ = ["WorkerProcess"]

log = logging.getLogger(__name__)

LOG_TAIL_LINES = 15

_SETTINGS = {
    # OpenMP's threads spin at barriers, long enough to starve everyone on a CPU that others use too; not spinning
    # at all costs a third of the speed on one that is free. This is between the two.
    "GOMP_SPINCOUNT": "100000",
    # oneDNN, and torch around it, keep a kernel for each of the last 1,024 shapes, half a megabyte and more each:
    # 2.2 GiB after prompts of 1,600 lengths in bfloat16, and 0.4 with these.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "256",
}
"""For a worker's libraries; what the user has set wins."""
OUTPUT_GRACE_S = 2.0
EXIT_LOOK_S = 0.1
"""A child of the worker may hold its output open after its death."""


class WorkerProcess:
    """A started worker. Make it with `start`."""

    def __init__(self, process: Process, model_id: str) -> None:
        self._process = process
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(_retrieve)
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self._reason = ""
        self._log = logging.getLogger(f"probewire.worker.{model_id}")
        self.last_report_s = asyncio.get_running_loop().time()
        self.ended = asyncio.Event()
        """Set once the process is gone and all its output read."""
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, config: WorkerConfig, on_progress: Callable[[LoadProgress], None]) -> WorkerProcess:
        """Start a worker in a process group of its own, so that Ctrl-C in a terminal reaches only the gateway.

        Raises OSError or RuntimeError when the system has no process, file or thread left for it.
        """
        command = (sys.executable, "-P", "-m", WORKER_MODULE)
        environment = {**_SETTINGS, **os.environ}
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True, env=environment
        )
        self = cls(process, config.id)
        assert process.stdin is not None
        process.stdin.write(orjson.dumps(to_json(config)) + b"\n")
        self._tasks = [asyncio.create_task(self._read_reports(on_progress)), asyncio.create_task(self._read_log())]
        self._tasks.append(asyncio.create_task(self._wait()))
        return self

    @property
    def pid(self) -> int:
        """Process id, and group id too."""
        return self._process.pid

    @property
    def ending(self) -> str:
        """How it ended: `signal 9`, `exit code 1`, and why we ended it, if we did."""
        code = self._process.returncode
        assert code is not None
        status = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{status}: {self._reason}" if self._reason else status

    async def ready(self, stall_s: float) -> None:
        """Wait until it serves. Raises the worker's own error, or how it died; a worker silent for `stall_s` is killed."""
        loop = asyncio.get_running_loop()
        while not self._ready.done():
            left = self.last_report_s + stall_s - loop.time()
            if left <= 0:
                self.kill(f"it reported nothing for {stall_s:g} s while loading")
                await self.ended.wait()
                break
            await asyncio.wait([self._ready], timeout=left)
        self._ready.result()

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self, reason: str = "") -> None:
        """End it and whatever it started, now."""
        self._reason = self._reason or reason
        self._signal(signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """Ask, wait, kill. Waits until it is gone."""
        self.terminate()
        try:
            await asyncio.wait_for(self.ended.wait(), grace_s)
        except TimeoutError:
            log.warning("worker %d did not end within %g s; killing it", self.pid, grace_s)
            self.kill()
            await self.ended.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # it ended, and we have not been told yet
                os.killpg(self.pid, number)

    async def _wait(self) -> None:
        exited = asyncio.create_task(self._process.wait())
        while (
            self._process.returncode is None
        ):  # some Pythons' `wait` waits for the pipes too, which its children may hold
            await asyncio.wait([exited], timeout=EXIT_LOOK_S)
        exited.cancel()
        readers = self._tasks[:2]
        _, late = await asyncio.wait(readers, timeout=OUTPUT_GRACE_S)
        for reader in late:
            reader.cancel()
        if late:  # else the pipes stay open for as long as whoever holds their other ends
            cast("Any", self._process)._transport.close()
        if not self._ready.done():
            tail = "\n".join(self._tail)
            self._ready.set_exception(
                Unavailable(f"the worker died while loading ({self.ending}); its last words:\n{tail}")
            )
        self.ended.set()
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def _read_reports(self, on_progress: Callable[[LoadProgress], None]) -> None:
        assert self._process.stdout is not None
        async for line in _lines(self._process.stdout):
            self.last_report_s = asyncio.get_running_loop().time()
            try:
                self._take(orjson.loads(line), on_progress)
            except (ValueError, TypeError, KeyError):  # no JSON, or none of ours: the next one may be
                self._log.warning("unexpected report: %s", line[:200])

    def _take(self, report: dict[str, Any], on_progress: Callable[[LoadProgress], None]) -> None:
        if not isinstance(report, dict):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can be anything
            raise TypeError
        if "stage" in report:
            on_progress(LoadProgress(report["stage"], report.get("done", 0), report.get("total", 0)))
        elif self._ready.done():
            return
        elif "error" in report:
            self._ready.set_exception(_reported_error(report))
        elif report["ready"] is True:
            self._ready.set_result(None)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in _lines(self._process.stderr):
            self._tail.append(line)
            self._log.info("%s", line)


def _reported_error(report: dict[str, Any]) -> ProbewireError:
    name, message = report["error"], report["message"]
    return error_from_code(Code[name], message) if name in Code.__members__ else Internal(message)


def _retrieve(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting when a load fails; asyncio is not to complain about that."""
    if not future.cancelled():
        future.exception()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of any length, without their ends; a carriage return (a progress bar) ends one too."""
    rest = b""
    while data := await reader.read(1 << 16):
        *whole, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            if line.strip():
                yield line.decode(errors="replace")
        if len(rest) > 1 << 20:
            yield rest.decode(errors="replace")
            rest = b""
    if rest.strip():
        yield rest.decode(errors="replace")
