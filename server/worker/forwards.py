"""Forwards without sampling: runs, gradients and sweeps, taken from their queue in slices that are bounded in time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ...backends.hooks.base import Backend
from ...backends.hooks.bound import BoundPlan
from ...backends.hooks.gradients import rows_of
from ...backends.hooks.overflow import NotFinite, explained
from ...backends.hooks.run_parts import RunParts
from ...backends.hooks.sequence import Sequence, StepResult
from ...backends.hooks.source_rows import give_rows
from ...backends.model.chunk import SLICE_S
from ...protos.errors import Internal, ProbewireError, error_from_code
from .admission import Item
from .fair_queue import FairQueue
from .input.prepared import PreparedInput
from .output.delivery import ActiveRequest
from .pace import Pace
from .throughput import Throughput

__all__ = ["GRADIENT_COST", "Forwards", "as_internal", "told"]

log = logging.getLogger(__name__)

GRADIENT_COST = 4
"""A row of a gradient takes as much memory as this many of a run: what the backward needs is kept."""


ALONE_S = 0.5
"""How long a slice lasts while nobody else is there: each has fixed costs, and whoever comes meanwhile waits half of it."""
LONGEST_BESIDE_OTHERS_S = 2.0
"""A forward that cannot be cut and is thought to take longer waits until nobody else wants the model."""


class Forwards:
    """Owns the turn of everything that does not generate; used by the model's thread.

    Each turn is a slice bounded in time: as many rows as the pace so far lets through, a long run in parts. What cannot
    be cut and takes long waits until nobody else wants the model.
    """

    def __init__(
        self,
        queue: FairQueue[Item],
        throughput: Throughput,
        drop: Callable[[ActiveRequest, ProbewireError], None],
        advance: Callable[[ActiveRequest], None],
    ) -> None:
        """`drop` ends a job with an error; `advance` queues what waited for an input's rows."""
        self._queue, self._throughput, self._drop, self._advance = queue, throughput, drop, advance
        self.pace = Pace()
        self._prefixes: dict[int, Any] = {}
        """Sweep input → what its variants share."""
        self._parts: dict[int, RunParts] = {}
        """Sequence → what has run of it."""

    def some(self, backend: Backend, *, generating: bool) -> bool:
        """One slice, bounded in time; one forward where that is longer. False when nothing could run now."""
        found = self._next(backend, generating=generating)
        seconds = SLICE_S if generating or len(self._queue.users) > 1 else ALONE_S
        if found is None:
            return False
        job, item, sequence = found
        limits = backend.limits
        most = limits.chunk_tokens if generating else limits.max_run_tokens
        kind = _kind(item, sequence)
        most = min(most, self.pace.rows(kind, job, seconds, limits.chunk_tokens))
        batch = [found]
        try:
            if kind == "sweep":
                self._sweep(backend, job, item, most)
                return True
            if id(sequence) in self._parts or _goes_in_parts(backend, sequence, most):
                self._part(backend, job, item, sequence, most)
                return True
            batch = self._batch(backend, found, kind, most, generating=generating)
            sequences = [sequence for _, _, sequence in batch]
            with self.pace.timed(kind, job, sum(map(_rows, sequences))):
                results = backend.run(sequences) if sequence.backward is None else backend.gradients(sequences)
        except Exception as error:  # the whole forward failed: say so to each, and live on
            if not isinstance(error, ProbewireError):
                log.exception("a run failed")
            for each, _, _ in batch:
                self._drop(each, as_internal("run", error))
            return True
        self._throughput.ran(sum(len(sequence.tokens) for sequence in sequences))
        for (job, item, sequence), result in zip(batch, results, strict=True):
            self._ran(backend, job, item, sequence, result)
        return True

    def _next(self, backend: Backend, *, generating: bool) -> tuple[ActiveRequest, PreparedInput, Sequence] | None:
        """Whose turn it is: least served first, passing by what has to wait."""
        self._let_go_of_ended()
        users = [(job, item, _sequence_of(job, item)) for _, (job, item) in self._queue.candidates({})]
        others = generating or len(users) > 1
        may_run = (found for found in users if not self._must_wait(backend, found[1], found[2], others=others))
        return next(may_run, None if generating or not users else users[0])

    def _let_go_of_ended(self) -> None:
        for user in self._queue.users:
            while user in self._queue.users and self._queue.first(user)[0].ended:
                self._queue.pop(user)

    def _must_wait(self, backend: Backend, item: PreparedInput, sequence: Sequence, *, others: bool) -> bool:
        """Whether one forward of it would hold everybody up; or whether long runs under way have taken the memory set
        aside for them."""
        kind = _kind(item, sequence)
        if kind == "run" and backend.cuts_runs:
            held = sum(parts.done for parts in self._parts.values())
            long = id(sequence) not in self._parts and self.pace.seconds(kind, len(sequence.tokens)) > SLICE_S
            return long and held > 0 and held + len(sequence.tokens) > backend.limits.cache_tokens
        return others and self.pace.seconds(kind, _rows(sequence)) > LONGEST_BESIDE_OTHERS_S

    def _batch(
        self,
        backend: Backend,
        first: tuple[ActiveRequest, PreparedInput, Sequence],
        kind: str,
        most: int,
        *,
        generating: bool,
    ) -> list[tuple[ActiveRequest, PreparedInput, Sequence]]:
        """The next forwards of one kind, as many as `most` token rows hold, out of the queue; the first in any case."""
        batch, longest = list[tuple[ActiveRequest, PreparedInput, Sequence]](), 0
        found: tuple[ActiveRequest, PreparedInput, Sequence] | None = first
        while found is not None:
            job, item, sequence = found
            longest = max(longest, _rows(sequence))
            unlike = _kind(item, sequence) != kind or id(sequence) in self._parts
            if batch and (unlike or longest * (len(batch) + 1) > most):
                break
            self._queue.pop(job.caller.user.name)
            self._queue.ledger.charge(job.caller.user.name, _rows(sequence))
            self._begin(job, item, sequence)
            batch.append(found)
            found = self._next(backend, generating=generating)
        return batch

    def _begin(self, job: ActiveRequest, item: PreparedInput, sequence: Sequence) -> None:
        if sequence is item.sequence and not sequence.begun:
            job.admitted(item)

    def _part(self, backend: Backend, job: ActiveRequest, item: PreparedInput, sequence: Sequence, most: int) -> None:
        """The next rows of a long run, which stays at the head of its user's queue until it is done."""
        self._begin(job, item, sequence)
        parts = self._parts.setdefault(id(sequence), RunParts())
        start, user = parts.done, job.caller.user.name
        stop = min(start + most, len(sequence.tokens))
        with self.pace.timed("run", job, stop - start):
            result = backend.run_part(sequence, parts, stop)
        self._throughput.ran(stop - start)
        self._queue.ledger.charge(user, stop - start)
        if result.error is None and stop < len(sequence.tokens):
            return
        self._parts.pop(id(sequence), None)
        self._queue.discard(lambda waiting: waiting[1] is item)
        self._ran(backend, job, item, sequence, result)

    def _ran(
        self, backend: Backend, job: ActiveRequest, item: PreparedInput, sequence: Sequence, result: StepResult
    ) -> None:
        if result.error is not None:
            self._drop(job, told(backend, result))
        elif sequence is item.source:
            job.take_source_rows(item, result)
            self._advance(job)
        else:
            job.deliver_run(item, result)

    def _sweep(self, backend: Backend, job: ActiveRequest, item: PreparedInput, most: int) -> None:
        """The next plans of a sweep, or first what they share; the rest queues again, behind others' work."""
        sequence, user = item.sequence, job.caller.user.name
        assert sequence is not None
        if job.prepared.share and id(item) not in self._prefixes:
            self._begin(job, item, sequence)
            with self.pace.timed("run", job, len(sequence.tokens)):
                self._prefixes[id(item)] = backend.shared_prefix(sequence)
            self._queue.ledger.charge(user, len(sequence.tokens))
            return
        self._queue.pop(user)
        self._begin(job, item, sequence)
        item.queued = False
        chosen = _next_plans(item, most)
        variants = [_variant(job, sequence, item.variants[i], f"{sequence.id}.{i}") for i in chosen]
        rows = sum(rows for rows, _ in item.order[item.n_swept : item.n_swept + len(chosen)])
        with self.pace.timed("sweep", job, max(rows, 1)):
            for variant in variants:
                backend.bind(variant.plan)
            results = backend.sweep(variants, self._prefixes.get(id(item)))
        self._queue.ledger.charge(user, rows)
        self._throughput.ran(rows)
        for bound in (bound for variant in variants for bound in variant.plan.hooks):
            bound.device = bound.source = None  # measured plans keep no tensors
        item.n_swept += len(chosen)
        failed = next(
            ((i, result) for i, result in zip(chosen, results, strict=True) if result.error is not None), None
        )
        done = item.n_swept == len(item.variants)
        if failed is not None or done:
            self._prefixes.pop(id(item), None)
        if failed is not None:
            self._drop(job, told(backend, failed[1], f"plan {failed[0]}: "))
            return
        job.deliver_measured(item, chosen, [result.measured for result in results], done=done)
        if not done:
            self._advance(job)

    def forget(self, job: ActiveRequest) -> None:
        """A request that is gone keeps no memory."""
        self.pace.forget(job)
        for item in job.prepared.inputs:
            self._prefixes.pop(id(item), None)
            for sequence in (item.source, item.sequence):
                self._parts.pop(id(sequence), None)


def _sequence_of(job: ActiveRequest, item: PreparedInput) -> Sequence:
    """What of an input runs next: its run as a source, until that is done."""
    source = item.source if item.source is not None and item.item.name not in job.prepared.rows else None
    sequence = source or item.sequence
    assert sequence is not None
    return sequence


def _kind(item: PreparedInput, sequence: Sequence) -> str:
    """What can share a forward, and costs alike per row."""
    if item.variants and sequence is item.sequence:
        return "sweep"
    return "run" if sequence.backward is None else f"gradients {sequence.backward.kind}"


def _rows(sequence: Sequence) -> int:
    return len(sequence.tokens) if sequence.backward is None else rows_of(sequence) * GRADIENT_COST


def _goes_in_parts(backend: Backend, sequence: Sequence, most: int) -> bool:
    return backend.cuts_runs and sequence.backward is None and len(sequence.tokens) > most


def _next_plans(item: PreparedInput, most: int) -> list[int]:
    """As many as `most` token rows hold; at least one."""
    chosen: list[int] = []
    for rows, index in item.order[item.n_swept :]:
        most -= rows
        if chosen and most < 0:
            break
        chosen.append(index)
    return chosen


def _variant(job: ActiveRequest, base: Sequence, plan: BoundPlan, name: str) -> Sequence:
    for bound in plan.hooks:
        if bound.needs is not None:
            rows = job.prepared.rows[bound.needs[0]]
            give_rows(bound, [rows[str(site)] for site in bound.sites])
    return Sequence(name, base.tokens, base.prompt_length, plan, metrics=base.metrics)


def told(backend: Backend, result: StepResult, what: str = "") -> ProbewireError:
    """A result's error as its caller is told: of values that overflowed, with the place where it began."""
    error = result.error
    assert error is not None
    if isinstance(error, NotFinite):
        error = explained(backend, result.sequence, error)
    return error_from_code(error.code, what + error.message) if what else error


def as_internal(what: str, error: Exception) -> ProbewireError:
    """Ours as it is; any other named as a fault of what failed."""
    return (
        error if isinstance(error, ProbewireError) else Internal(f"the {what} failed: {type(error).__name__}: {error}")
    )
