"""The one thread that owns the model: it takes requests in, steps the engine, runs forwards, and hands results out."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..backends.base import Backend, Sequence, StepResult
from ..backends.plan import give_rows
from ..protos.errors import Cancelled, Internal, ProbewireError, ResourceExhausted, Unavailable
from .delivery import Job
from .requests import Prepared, PreparedInput

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)

IDLE_WAIT_S = 0.5
CLOSE_WAIT_S = 4.0
"""Within the time that a worker has to end (its `drain_s` and the gateway's grace)."""


class Scheduler:
    """Owns a backend on a thread of its own. `submit`, `cancel` and `call` may be used from any thread."""

    def __init__(self, build: Callable[[], Backend], *, max_queued: int, max_run_rows: int) -> None:
        self._build, self._max_queued, self._max_run_rows = build, max_queued, max_run_rows
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._waiting: deque[tuple[Job, PreparedInput]] = deque()
        self._runs: deque[tuple[Job, PreparedInput]] = deque()
        self._jobs: dict[str, Job] = {}
        """Sequence id → job, for sequences in the engine."""
        self._paused: set[str] = set()
        self._closing = False
        self._forward_since: float | None = None
        self.backend: Backend
        self._thread = threading.Thread(target=self._main, name="model", daemon=True)

    def start(self) -> Backend:
        """Build the backend on its own thread. Raises what the build raised."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self.backend

    def close(self) -> None:
        """End every request with Unavailable and let go of the model."""
        self._closing = True
        self.wake()
        self._thread.join(timeout=CLOSE_WAIT_S)

    def wake(self) -> None:
        """Look at the queues now."""
        with self._wake:
            self._wake.notify()

    @property
    def busy_s(self) -> float:
        """How long the forward under way has taken; 0 between forwards."""
        since = self._forward_since
        return 0.0 if since is None else time.monotonic() - since

    def call(self, function: Callable[[], Any], *, give_up_s: float | None = None) -> Any:
        """Run a function on the model's thread, between steps, and return what it returns.

        With `give_up_s`, return None when it has not been reached by then (it will still run).
        """
        done, box = threading.Event(), dict[str, Any]()

        def work() -> None:
            try:
                box["value"] = function()
            except Exception as error:  # noqa: BLE001 - raised again in the caller
                box["error"] = error
            done.set()

        self._enqueue(work)
        end = None if give_up_s is None else time.monotonic() + give_up_s
        while not done.wait(IDLE_WAIT_S):
            if not self._thread.is_alive():
                raise Unavailable("the model's thread has ended; the worker must be restarted")
            if end is not None and time.monotonic() > end:
                return None
        if "error" in box:
            raise box["error"]
        return box["value"]

    def submit(self, job: Job) -> None:
        """Queue a prepared request. Raises ResourceExhausted when too many wait."""
        if len(self._waiting) + len(self._runs) >= self._max_queued:
            raise ResourceExhausted(
                f"{self._max_queued} requests are waiting already; try again later", retry_after_s=1.0
            )
        if not self._thread.is_alive():
            raise Unavailable("the model's thread has ended; the worker must be restarted")
        self._enqueue(lambda: self._accept(job))

    def cancel(self, job: Job) -> None:
        """Take a request out, wherever it is; harmless when it has ended."""
        self._enqueue(lambda: self._drop(job, Cancelled("the request was cancelled")))

    # ---- on the model's thread from here on ----

    def _enqueue(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _main(self) -> None:
        try:
            self.backend = self._build()
        except BaseException as error:  # noqa: BLE001 - raised again in `start`
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        while not self._closing:
            self._turn()
        self._fail_all(Unavailable("the model is being unloaded"))
        self.backend.close()

    def _turn(self) -> None:
        with self._wake:
            if not self._commands and not self._has_work():
                self._wake.wait(IDLE_WAIT_S)
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        self._forward_since = time.monotonic()
        self._run_some()
        self._admit()
        self._hold_back()
        self._step()
        self._forward_since = None

    def _has_work(self) -> bool:
        engine = self.backend.engine
        stepping = engine is not None and any(s.id not in self._paused for s in engine.active)
        return bool(self._runs or stepping or (self._waiting and engine is not None and not engine.active))

    def _accept(self, job: Job) -> None:
        """Queue a request's runs: inputs that others read first, then those that read them."""
        prepared = job.prepared
        job.remaining = sum(1 for item in prepared.inputs if item.sequence is not None)
        try:
            for item in prepared.inputs:
                for sequence in (item.source, item.sequence):
                    if sequence is not None and not any(b.needs for b in sequence.plan.hooks):
                        self.backend.bind(sequence.plan)
        except Exception as error:  # noqa: BLE001 - one request's fault must not end the thread that serves all
            self._drop(job, _internal("plan", error))
            return
        job.pending = sorted(prepared.inputs, key=lambda item: item.level)
        if not any(item.source is not None for item in prepared.inputs):
            job.start()
        self._advance(job)

    def _advance(self, job: Job) -> None:
        """Queue whatever of a request has all its source rows."""
        try:
            still: list[PreparedInput] = []
            for item in job.pending:
                if self._ready_to_go(job.prepared, item):
                    if item.source is not None and item.item.name not in job.prepared.rows:
                        self._runs.append((job, item))
                        still.append(item)
                    else:
                        self._enqueue_sequence(job, item)
                else:
                    still.append(item)
            job.pending = still
        except Exception as error:  # noqa: BLE001 - as in `_accept`
            self._drop(job, _internal("patch", error))

    def _ready_to_go(self, prepared: Prepared, item: PreparedInput) -> bool:
        for sequence in (item.source, item.sequence):
            for bound in sequence.plan.hooks if sequence is not None else ():
                if bound.needs is None:
                    continue
                rows = prepared.rows.get(bound.needs[0])
                if rows is None:
                    return False
                give_rows(bound, [rows[str(site)] for site in bound.sites])
            if sequence is not None and any(b.device is None for b in sequence.plan.hooks):
                self.backend.bind(sequence.plan)
        return True

    def _enqueue_sequence(self, job: Job, item: PreparedInput) -> None:
        job.start()
        if item.sequence is None:
            return
        (self._waiting if item.generates else self._runs).append((job, item))

    def _run_some(self) -> None:
        """One batched forward over runs that fit together."""
        batch: list[tuple[Job, PreparedInput, Sequence]] = []
        longest = 0
        while self._runs:
            job, item = self._runs[0]
            if job.ended:
                self._runs.popleft()
                continue
            source = item.source if item.source is not None and item.item.name not in job.prepared.rows else None
            sequence = source or item.sequence
            assert sequence is not None
            longest = max(longest, len(sequence.tokens))
            if batch and longest * (len(batch) + 1) > self._max_run_rows:
                break
            self._runs.popleft()
            if sequence is item.sequence:
                job.admitted(item)
            batch.append((job, item, sequence))
        if not batch:
            return
        try:
            results = self.backend.run([sequence for _, _, sequence in batch])
        except Exception as error:  # the whole forward failed: say so to each, and live on
            log.exception("a run failed")
            for job, _, _ in batch:
                self._drop(job, _internal("run", error))
            return
        for (job, item, sequence), result in zip(batch, results, strict=True):
            self._ran(job, item, sequence, result)

    def _ran(self, job: Job, item: PreparedInput, sequence: Sequence, result: StepResult) -> None:
        if result.error is not None:
            self._drop(job, result.error)
        elif sequence is item.source:
            job.take_source_rows(item, result)
            self._advance(job)
        else:
            job.deliver_run(item, result)

    def _admit(self) -> None:
        engine = self.backend.engine
        while self._waiting and engine is not None:
            job, item = self._waiting[0]
            if job.ended:
                self._waiting.popleft()
                continue
            assert item.sequence is not None
            try:
                if not engine.admit(item.sequence):
                    return
            except Exception as error:  # noqa: BLE001 - as in `_accept`
                self._drop(job, _internal("admission", error))
                continue
            self._waiting.popleft()
            self._jobs[item.sequence.id] = job
            job.admitted(item)

    def _hold_back(self) -> None:
        """Leave sequences with a slow reader out of the coming step, and take them in again once it has caught up."""
        engine = self.backend.engine
        if engine is None:
            return
        for sequence in engine.active:
            behind = self._jobs[sequence.id].is_behind(held=sequence.id in self._paused)
            if behind and sequence.id not in self._paused:
                engine.pause(sequence)
                self._paused.add(sequence.id)
            elif not behind and sequence.id in self._paused:
                engine.resume(sequence)
                self._paused.discard(sequence.id)

    def _step(self) -> None:
        engine = self.backend.engine
        if engine is None or not any(s.id not in self._paused for s in engine.active):
            return
        try:
            results = engine.step()
        except Exception as error:
            log.exception("a step failed")
            for job in {id(j): j for j in self._jobs.values()}.values():
                self._drop(job, _internal("generation step", error))
            return
        touched: dict[str, Job] = {}
        for result in results:
            job = self._jobs.get(result.sequence.id)
            if job is None:
                continue
            touched[job.prepared.id] = job
            if result.error is not None:
                self._drop(job, result.error)
            elif job.deliver_step(result):
                self._jobs.pop(result.sequence.id, None)
                engine.remove(result.sequence)
        for job in touched.values():
            job.send()

    def _drop(self, job: Job, error: ProbewireError) -> None:
        if job.ended:
            return
        job.fail(error)
        for item in job.prepared.inputs:
            sequence = item.sequence
            if sequence is not None and self._jobs.pop(sequence.id, None) is not None:
                assert self.backend.engine is not None
                self._paused.discard(sequence.id)
                self.backend.engine.remove(sequence)

    def _fail_all(self, error: ProbewireError) -> None:
        with self._wake:
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        jobs = [*self._jobs.values(), *(job for job, _ in (*self._waiting, *self._runs))]
        for job in jobs:
            self._drop(job, error)


def _internal(what: str, error: Exception) -> ProbewireError:
    return (
        error if isinstance(error, ProbewireError) else Internal(f"the {what} failed: {type(error).__name__}: {error}")
    )
