"""A loaded model from the gateway's side: its worker process, watched, restarted when it dies or hangs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from ...backends.checkpoints.at_sight import refuse_at_sight
from ...protos.activity import ModelActivity, WorkerStatus
from ...protos.errors import Internal, ProbewireError, Unavailable
from ...protos.loading import LoadProgress
from ...protos.model import ModelInfo
from ...protos.operations import BY_CALL, Operation
from ..auth.callers import Caller
from ..config import Supervision, WorkerConfig
from ..streams import closing
from .channel import WorkerChannel
from .process import WorkerProcess
from .watch import Watch

__all__ = ["State", "Worker"]

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "restarting", "asleep", "failed", "stopping"]

STATUS_S = 2.0
"""How long to wait for the engine's status."""
EXIT_NOTICE_S = 2.0
"""How long after a broken connection we wait to hear that the process is gone."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the process, taken out of its life to be ended."""

    task: asyncio.Task[None] | None
    process: WorkerProcess | None
    channel: WorkerChannel | None


class Worker:
    """One model. `start` begins to load it; the calls raise Unavailable unless it is ready."""

    def __init__(
        self,
        config: WorkerConfig,
        supervision: Supervision,
        new_folder: Callable[[], Path],
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        """`new_folder` makes one for a socket, a folder a process; `on_restart` is called for each that has to be
        started because one died.
        """
        self.config = config
        self.info: ModelInfo | None = None
        """Set from the first time it was ready."""
        self._supervision = supervision
        self._watch = Watch(config.id, supervision)
        self._new_folder, self._on_restart = new_folder, on_restart
        self._state: State = "loading"
        self._detail = "starting"
        self._failure: ProbewireError | None = None
        self._progress = LoadProgress("starting")
        self._changed = asyncio.Event()
        self._revivals = 0
        self._waking = False
        self._not_woken: ProbewireError | None = None
        self._ending: asyncio.Task[None] | None = None
        self._in_use = 0
        self._used_s = time.monotonic()
        self.sessions: dict[str, int] = {}
        """Revision of each live session that this run of the worker has been told of; a new run has a new one."""
        self._process: WorkerProcess | None = None
        self._channel: WorkerChannel | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load; see `progress`."""
        self._task = asyncio.create_task(self._live(), name=f"worker {self.config.id}")

    # ---- what the gateway asks ----

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The process that serves now."""
        return self._process.pid if self._process else None

    @property
    def restarts(self) -> int:
        """How often a new process had to be started because one died."""
        return self._revivals

    @property
    def never_loaded(self) -> bool:
        """It failed before it served anything: only its name and the reason are kept, where they are."""
        return self._state == "failed" and self.info is None

    @property
    def status(self) -> str:
        """`ready`, or the state and why."""
        if self._state != "ready":
            return f"{self._state}: {self._detail}" if self._detail else self._state
        age_s = self._watch.age_s
        return "ready" if age_s <= self._supervision.fresh_s else f"unresponsive: last good probe {age_s:.0f} s ago"

    async def progress(self) -> AsyncIterator[LoadProgress]:
        """How the load goes, the latest only; ends with the model's info. Raises why it failed."""
        seen = LoadProgress("")
        while self._state in ("loading", "restarting"):
            if self._progress is not seen:
                seen = self._progress
                yield seen
            else:
                await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        if self._state == "stopping":
            raise Unavailable(f"model {self.config.id!r} was unloaded while it was loading")
        self._check_woken()
        yield LoadProgress("ready", info=self.info)

    async def stream(self, method: str, request: bytes, caller: Caller) -> AsyncIterator[bytes]:
        """A streaming call's messages, as the worker sent them. Closing cancels the call."""
        channel = self._ready_channel()
        with self._used():
            async with closing(channel.stream(method, request, caller)) as messages:
                async for message in messages:
                    yield message

    async def ask(self, caller: Caller, operation: Operation, *args: Any) -> Any:
        """What an operation with one answer comes to, on a caller's behalf."""
        channel, request = self._ready_channel(), operation.asked(*args).SerializeToString()
        with self._used():
            answer = await channel.unary(operation.path, request, caller)
        return operation.result(operation.answer_message.FromString(answer))

    async def engine_status(self, timeout_s: float) -> WorkerStatus:
        """What its engine does now."""
        status = BY_CALL["status"]
        answer = await self._ready_channel().unary(status.path, b"", timeout_s=timeout_s)
        return status.result(status.answer_message.FromString(answer))

    async def activity(self) -> ModelActivity:
        """As `probewire top` shows it."""
        status, memory = WorkerStatus(), 0
        if self.state == "ready":
            with suppress(ProbewireError):
                status = await self.engine_status(STATUS_S)
        if self.pid is not None:
            with suppress(psutil.Error):
                memory = psutil.Process(self.pid).memory_info().rss
        return ModelActivity(
            id=self.config.id,
            state=self.status,
            backend=self.info.backend if self.info else self.config.backend,
            device=self.info.device if self.info else "",
            restarts=self.restarts,
            memory_bytes=memory,
            status=status,
        )

    @contextmanager
    def _used(self) -> Generator[None]:
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1
            self._used_s = time.monotonic()

    @property
    def idle_s(self) -> float:
        """How long nobody has asked anything of it; 0 while it serves a call."""
        return 0.0 if self._in_use else time.monotonic() - self._used_s

    def sleep(self) -> None:
        """End the process and keep the name: the next request starts it again. Does nothing while somebody uses it."""
        if self._state != "ready" or self._in_use:
            return
        log.info("model %s was idle for %.0f s; its memory is freed until it is asked for", self.config.id, self.idle_s)
        self._ending = asyncio.create_task(self._end(self._let_go(), self.config.drain_s))
        self._become("asleep", "freed its memory; the next request loads it again")

    def wake(self) -> None:
        """Begin to load again."""
        if self._state == "asleep":
            self._waking, self._not_woken = True, None
            self._become("loading", "waking up")
            self._task = asyncio.create_task(self._live(), name=f"worker {self.config.id}")

    @asynccontextmanager
    async def awake(self) -> AsyncGenerator[None]:
        """Hold it awake, woken first if it sleeps. Raises why it could not be woken.

        From the first moment on it is in use: it cannot fall asleep again before the request has come to it.
        """
        with self._used():
            self.wake()
            while self._waking and self._state == "loading":
                await self._changed.wait()
            self._check_woken()
            yield

    def _check_woken(self) -> None:
        if self._state == "asleep" and self._not_woken is not None:
            raise Unavailable(f"model {self.config.id!r} sleeps and could not be woken: {self._not_woken.message}")

    async def stop(self) -> None:
        """Let requests in flight finish within the worker's `drain_s`, then end it for good."""
        drain_s = 0.0 if self._state == "loading" else self.config.drain_s
        self._become("stopping")
        await self._end(self._let_go(), drain_s)
        if self._ending is not None:
            await asyncio.wait([self._ending])

    def _let_go(self) -> _Run:
        """Take the process out of its life, at once: from here on neither its death nor its task changes anything."""
        run = _Run(self._task, self._process, self._channel)
        self._task = self._channel = None
        if run.task is not None:
            run.task.cancel()
        return run

    async def _end(self, run: _Run, drain_s: float) -> None:
        if run.task is not None:
            await asyncio.wait([run.task])
        if run.process is not None:
            await run.process.stop(drain_s + self._supervision.kill_grace_s)
        if run.channel is not None:
            await run.channel.close()

    def kill(self) -> None:
        """End it now, without waiting."""
        self._become("stopping")
        run = self._let_go()
        if run.process is not None:
            run.process.kill()

    def check_not_failed(self) -> None:
        """Raise Unavailable, with the reason, where it has been given up."""
        if self._state == "failed":
            raise Unavailable(f"model {self.config.id!r} failed: {self._detail}; unload it, or load it again")

    def _ready_channel(self) -> WorkerChannel:
        name = repr(self.config.id)
        if self._state == "ready" and self._channel is not None:
            return self._channel
        self.check_not_failed()
        if self._state == "stopping":
            raise Unavailable(f"model {name} is being unloaded")
        raise Unavailable(f"model {name} is {self._state} ({self._detail}); retry", retry_after_s=2.0)

    # ---- its life ----

    async def _live(self) -> None:
        """From the start to the end. Whatever goes wrong in here, nobody waits for ever: it ends in a state, in words."""
        try:
            if self._ending is not None:  # its memory must be free before it is taken again
                await asyncio.wait([self._ending])
            if await self._begin():
                await self._go_on()
        except Exception as error:
            log.exception("model %s: looking after its worker failed", self.config.id)
            if self._process is not None:
                self._process.kill("looking after it failed")
            self._fail(Internal(f"looking after its worker failed: {type(error).__name__}: {error}"))

    async def _begin(self) -> bool:
        """The first start, or the first after a sleep; whether it serves."""
        try:
            await self._launch()
        except ProbewireError as error:
            if self._waking:  # the next request tries again
                self._waking = False
                self._not_woken = error
                self._become("asleep", f"could not be woken: {error.message}")
            else:
                self._fail(error)
            return False
        return True

    async def _go_on(self) -> None:
        """Until it is given up."""
        deaths = 0
        while self._state != "failed":
            since_s = time.monotonic()
            assert self._process is not None
            assert self._channel is not None
            cause = await self._watch.until_dead(self._process, self._channel)
            stable = time.monotonic() - since_s >= self._supervision.stable_s
            deaths = await self._revive(cause, 1 if stable else deaths + 1)

    async def _launch(self) -> None:
        """Start a process and wait until it has answered a probe. Raises ProbewireError and nothing else."""
        self.sessions = {}
        await asyncio.to_thread(refuse_at_sight, self.config.model, self.config.backend)
        try:
            address = f"unix:{self._new_folder() / 'worker.sock'}"
            process = await WorkerProcess.start(replace(self.config, address=address), self._on_progress)
        except (OSError, RuntimeError) as error:  # no memory to fork, no more files, processes or threads, no Python
            raise Unavailable(f"no process could be started for model {self.config.id!r}: {error}") from error
        self._process = process
        try:
            await process.ready(self._supervision.start_stall_s)
            self._channel = WorkerChannel(address, lambda: self._why_broken(process))
            self._on_progress(LoadProgress("first forward"))
            self.info = await self._watch.first(self._channel)
        except Exception as error:
            process.kill()
            await process.ended.wait()
            await self._drop_channel()
            if isinstance(error, ProbewireError):
                raise
            log.exception("model %s: its worker's first answers", self.config.id)
            raise Internal(f"the worker's first answers cannot be used: {type(error).__name__}: {error}") from error
        self._waking = False
        self._used_s = time.monotonic()
        self._become("ready")
        log.info("model %s is ready (pid %d, %s)", self.config.id, process.pid, self.config.backend)

    async def _revive(self, cause: str, deaths: int) -> int:
        """Start again, later each time; gives the deaths in a row. Ends in `ready` or `failed`."""
        bounds = self._supervision
        while deaths <= bounds.max_restarts:
            delay_s = min(bounds.backoff_s * 2 ** (deaths - 1), bounds.backoff_max_s)
            self._become("restarting", f"the worker died ({cause}); restart {deaths} of {bounds.max_restarts}")
            log.error("model %s: the worker died (%s); restarting it in %g s", self.config.id, cause, delay_s)
            self._revivals += 1
            self._on_restart()
            await self._drop_channel()
            await asyncio.sleep(delay_s)
            try:
                await self._launch()
            except ProbewireError as error:
                cause = error.message
                deaths += 1
            else:
                return deaths
        self._fail(Unavailable(f"the worker died {deaths} times in a row, at last: {cause}"))
        return deaths

    async def _why_broken(self, process: WorkerProcess) -> ProbewireError | None:
        """What to tell a caller whose connection to `process` broke; None when the process lives."""
        name = repr(self.config.id)
        if self._state == "stopping":
            return Unavailable(f"model {name} was unloaded before the request ended")
        try:
            await asyncio.wait_for(process.ended.wait(), EXIT_NOTICE_S)
        except TimeoutError:
            return None
        message = f"worker for model {name} died ({process.ending}); it is being restarted; retry"
        return Unavailable(message, retry_after_s=2.0)

    async def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _on_progress(self, progress: LoadProgress) -> None:
        self._progress = progress
        share = f" {100 * progress.done // progress.total} %" if progress.total else ""
        self._become(self._state, progress.stage + share if self._state == "loading" else self._detail)

    def _fail(self, error: ProbewireError) -> None:
        log.error("model %s failed: %s", self.config.id, error.message)
        self._failure = error
        self._waking = False
        self._become("failed", error.message)

    def _become(self, state: State, detail: str = "") -> None:
        if self._state == "stopping":
            return
        self._state, self._detail = state, detail
        self._changed.set()
        self._changed = asyncio.Event()
