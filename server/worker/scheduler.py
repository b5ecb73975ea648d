"""The one thread that owns the model: it takes requests in, steps the engine, runs forwards, and hands results out."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence as SequenceOf
from itertools import chain
from typing import Any

from ...backends.hooks.base import Backend
from ...backends.hooks.bound import BoundPlan
from ...backends.hooks.sequence import Sequence
from ...backends.hooks.source_rows import give_rows
from ...protos.activity import WorkerStatus
from ...protos.errors import Cancelled, Internal, ProbewireError, ResourceExhausted, Unavailable
from ..config import RequestLimits
from .admission import Item, admit_next
from .cores import Cores
from .fair_queue import FairQueue, Ledger
from .forwards import Forwards, as_internal, told
from .gathering import Gathering
from .input.prepared import PreparedInput
from .output.delivery import ActiveRequest
from .throughput import Throughput

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)

IDLE_WAIT_S = 0.5
GENERATIONS_SHARE = 0.75  # of the model's time, while runs, gradients or sweeps want it too
CLOSE_WAIT_S = 4.0
"""Within the time that a worker has to end (its `drain_s` and the gateway's grace)."""


class Scheduler:
    """Owns a backend on a thread of its own. `submit`, `cancel`, `call` and `later` may be used from any thread."""

    def __init__(
        self,
        build: Callable[[int], Backend],
        limits: RequestLimits,
        on_death: Callable[[], None] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """`build` is given the number of threads, 0 where the library chooses; `on_death` is called when the thread fails for good, after every request was ended."""
        self._build, self._limits, self._on_death, self._threads = build, limits, on_death, threads
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        ledger = Ledger()
        self._waiting: FairQueue[Item] = FairQueue(ledger, limits.max_queued)
        self._runs: FairQueue[Item] = FairQueue(ledger, limits.max_queued)
        self._live: dict[str, ActiveRequest] = {}
        """Request id → job, from acceptance to its end."""
        self._jobs: dict[str, ActiveRequest] = {}
        """Sequence id → job, for sequences in the engine."""
        self._paused: set[str] = set()
        self._gathering = Gathering()
        self._owed_s = 0.0
        """Time that generations have coming, for what runs have had of theirs."""
        self._closing = False
        self.throughput = Throughput()
        self._forwards = Forwards(self._runs, self.throughput, self.drop, self._advance)
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
        return self.throughput.busy_s

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

        self.later(work)
        end = None if give_up_s is None else time.monotonic() + give_up_s
        while not done.wait(IDLE_WAIT_S):
            if not self._thread.is_alive():
                raise Unavailable("the model's thread has ended; the worker must be restarted")
            if end is not None and time.monotonic() > end:
                return None
        if "error" in box:
            raise box["error"]
        return box["value"]

    def submit(self, job: ActiveRequest) -> None:
        """Queue a prepared request. Raises ResourceExhausted when too many wait."""
        user, n = job.caller.user.name, len(job.prepared.inputs)
        retry_after_s = self.throughput.seconds_for(self._waiting.cost + self._runs.cost)
        queue = self._waiting if job.prepared.mode == "generate" else self._runs
        if not self._thread.is_alive():
            raise Unavailable("the model's thread has ended; the worker must be restarted")
        queue.expect(user, n, retry_after_s)

        def accept() -> None:
            queue.arrived(user, n)
            self._accept(job)

        self.later(accept)

    def cancel(self, job: ActiveRequest) -> None:
        """Take a request out, wherever it is; harmless when it has ended."""
        self.later(lambda: self.drop(job, Cancelled("the request was cancelled")))

    def later(self, command: Callable[[], None]) -> None:
        """Run a function on the model's thread, between steps; it must not raise."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    # ---- on the model's thread from here on ----

    @property
    def jobs(self) -> list[ActiveRequest]:
        """Requests that have not ended."""
        self._live = {name: job for name, job in self._live.items() if not job.ended}
        return list(self._live.values())

    def status(self) -> WorkerStatus:
        """The engine and the queue as they are now."""
        engine, limits = self.backend.engine, self.backend.limits
        active = [] if engine is None else list(engine.active)
        return WorkerStatus(
            running=len(active),
            held=len(self._paused),
            waiting=len(self._waiting) + len(self._runs),
            n_slots=limits.n_slots if engine is not None else 0,
            cache_used_tokens=sum(sequence.plan.n_rows + 1 for sequence in active),
            cache_tokens=limits.cache_tokens if engine is not None else 0,
            cache_held=0 if engine is None else engine.cache_held,
            hook_s=self.backend.hook_s,
            **self.throughput.totals(),
        )

    def _main(self) -> None:
        try:
            self._cores = Cores.at_load(self._threads, lambda n: self.backend.use_threads(n))  # noqa: PLW0108 - not there yet
            self.backend = self._build(self._cores.n)
            self._forwards.pace.try_out(self.backend)
        except BaseException as error:  # noqa: BLE001 - raised again in `start`
            self._failure = error
            self._ready.set()
            return
        self._waiting.n_slots = self.backend.limits.n_slots
        self._ready.set()
        try:
            while not self._closing:
                self._turn()
        except BaseException as error:  # what fails here is the scheduling itself: no request can be served any more
            log.exception("the model's thread failed")
            self._fail_all(Unavailable(f"the model's thread failed ({type(error).__name__}); it is being restarted"))
            if self._on_death is not None:
                self._on_death()
            return
        self._fail_all(Unavailable("the model is being unloaded"))
        self.backend.close()

    def _turn(self) -> None:
        with self._wake:
            if not self._commands and (pause_s := self._pause_s()):
                self._wake.wait(pause_s)
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        self._cores.look()
        with self.throughput.busy():
            self._give_up_waiting()
            self._admit()
            self._hold_back()
            self._step()
            self._run_some()  # last: whoever has come meanwhile has begun

    def _run_some(self) -> None:
        """A slice of what does not generate; beside generations no more than their share leaves."""
        stepping = self._stepping
        self._owed_s = self._owed_s if stepping else 0.0
        if self._owed_s > 0 or self._gather_s():
            return
        start_s = time.perf_counter()
        if len(self._runs) and self._forwards.some(self.backend, generating=stepping) and stepping:
            self._owed_s += (time.perf_counter() - start_s) * GENERATIONS_SHARE / (1 - GENERATIONS_SHARE)

    def _pause_s(self) -> float:
        """How long to wait for commands; 0 when there is work."""
        return self._gather_s() if self._has_work() else IDLE_WAIT_S

    def _gather_s(self) -> float:
        """How much longer an idle engine waits for generations; 0 when a step or a slice may begin."""
        return self._gathering.left_s(enough=bool(self._jobs) or len(self._waiting) >= self.backend.limits.n_slots)

    def _has_work(self) -> bool:
        engine = self.backend.engine
        waits = engine is not None and len(self._waiting) > 0 and not engine.active
        return len(self._runs) > 0 or self._stepping or waits

    @property
    def _stepping(self) -> bool:
        """Whether some generation goes on with the next step."""
        engine = self.backend.engine
        return engine is not None and any(s.id not in self._paused for s in engine.active)

    def _accept(self, job: ActiveRequest) -> None:
        """Queue a request's runs: inputs that others read first, then those that read them."""
        name = job.prepared.id
        if any(other.prepared.id == name for other in self.jobs):  # the engine knows sequences by it
            job.fail(Internal(f"a request of the id {name} is under way already"))
            return
        self._live = {**self._live, name: job}  # read by other threads
        try:
            job.catch_up()
            prepared = job.prepared
            job.remaining = sum(1 for item in prepared.inputs if item.sequence is not None)
            for sequence in chain.from_iterable((item.source, item.sequence) for item in prepared.inputs):
                if sequence is not None and not any(b.needs for b in sequence.plan.hooks):
                    self.backend.bind(sequence.plan)
        except Exception as error:  # noqa: BLE001 - one request's fault must not end the thread that serves all
            self.drop(job, as_internal("plan", error))
            return
        job.pending = sorted(prepared.inputs, key=lambda item: item.level)
        if not any(item.source is not None for item in prepared.inputs):
            job.start()
        self._advance(job)

    def _advance(self, job: ActiveRequest) -> None:
        """Queue whatever of a request has all the rows that it reads."""
        try:
            still: list[PreparedInput] = []
            for item in job.pending:
                if item.variants and item.n_swept == len(item.variants):
                    continue
                if item.source is not None and item.item.name not in job.prepared.rows:
                    if not item.source_queued and self._fill(job, item.source):
                        item.source_queued = True
                        self._push(self._runs, job, item, len(item.source.tokens))
                    still.append(item)
                elif (
                    item.sequence is not None and not item.n_swept and not self._fill(job, item.sequence, item.variants)
                ):
                    still.append(item)
                else:
                    self._enqueue_sequence(job, item)
                    if item.n_swept < len(item.variants):
                        still.append(item)
            job.pending = still
        except Exception as error:  # noqa: BLE001 - as in `_accept`
            self.drop(job, as_internal("patch", error))

    def _fill(self, job: ActiveRequest, sequence: Sequence, variants: SequenceOf[BoundPlan] = ()) -> bool:
        """Give a sequence the rows that it reads of other inputs; False while some have not run."""
        rows = job.prepared.rows
        needed = {b.needs[0] for b in chain(sequence.reading(), *(v.hooks for v in variants)) if b.needs is not None}
        if not needed.issubset(rows):
            return False
        for bound in sequence.reading():
            if bound.needs is not None:
                found = rows[bound.needs[0]]
                give_rows(bound, [found[str(site)] for site in bound.sites])
        if any(b.device is None for b in sequence.plan.hooks):
            self.backend.bind(sequence.plan)
        return True

    def _enqueue_sequence(self, job: ActiveRequest, item: PreparedInput) -> None:
        job.start()
        if item.sequence is not None and not item.queued:
            item.queued = True
            queue = self._waiting if item.generates else self._runs
            if item.generates and not self._jobs:
                self._gathering.came()
            self._push(queue, job, item, item.sequence.plan.n_rows)

    def _push(self, queue: FairQueue[Item], job: ActiveRequest, item: PreparedInput, cost: int) -> None:
        user = job.caller.user
        queue.push(user.name, user.weight, (job, item), cost, time.monotonic(), self._running())

    def _running(self) -> Counter[str]:
        """Slots that each user holds."""
        return Counter(job.caller.user.name for job in self._jobs.values())

    def _give_up_waiting(self) -> None:
        before_s = time.monotonic() - self._limits.max_wait_s
        for job, _ in (*self._waiting.overdue(before_s), *self._runs.overdue(before_s)):
            waited = f"the request waited for its turn for {self._limits.max_wait_s:g} s, the longest allowed"
            self.drop(job, ResourceExhausted(f"{waited}; try again later", retry_after_s=30.0))

    def _admit(self) -> None:
        """Fill free slots, in the order of fairness."""
        if self._gather_s():
            return
        running = self._running()
        while len(self._waiting) and (found := admit_next(self._waiting, self.backend, running)) is not None:
            if found.error is not None:
                self.drop(found.job, as_internal("admission", found.error))
            elif found.item.sequence is not None and not found.job.ended:
                self._jobs[found.item.sequence.id] = found.job
                found.job.admitted(found.item)

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
        if engine is None or not self._stepping:
            return
        start_s = time.perf_counter()
        try:
            results = engine.step()
            self._owed_s = max(0.0, self._owed_s - (time.perf_counter() - start_s))
        except Exception as error:
            log.exception("a step failed")
            for job in {id(j): j for j in self._jobs.values()}.values():
                self.drop(job, as_internal("generation step", error))
            return
        self.throughput.stepped(len(results), sum(result.token is not None for result in results))
        touched: dict[str, ActiveRequest] = {}
        for result in results:
            if (job := self._jobs.get(result.sequence.id)) is None:
                continue
            touched[job.prepared.id] = job
            if result.error is not None:
                self.drop(job, told(self.backend, result))
                continue
            self._waiting.ledger.charge(job.caller.user.name, result.token is not None)
            if job.deliver_step(result):
                self._jobs.pop(result.sequence.id, None)
                engine.remove(result.sequence)
        if not self._jobs and not len(self._waiting) and len(self._runs):
            self._gathering.ended()
        for job in touched.values():
            job.send()

    def drop(self, job: ActiveRequest, error: ProbewireError) -> None:
        """End a job wherever it is."""
        if job.ended:
            return
        job.fail(error)
        for item in job.prepared.inputs:
            sequence = item.sequence
            if sequence is not None and self._jobs.pop(sequence.id, None) is not None:
                assert self.backend.engine is not None
                self._paused.discard(sequence.id)
                self.backend.engine.remove(sequence)
        self._forwards.forget(job)
        unwanted = {id(item) for item in job.prepared.inputs}
        for queue in (self._waiting, self._runs):
            queue.discard(lambda waiting: id(waiting[1]) in unwanted)

    def _fail_all(self, error: ProbewireError) -> None:
        with self._wake:
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        for job in self.jobs:
            self.drop(job, error)
