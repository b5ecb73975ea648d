"""Forwards without sampling: runs, gradients and sweeps, taken from their queue in batches that fit together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..backends.base import Backend, Sequence, StepResult
from ..backends.bound import BoundPlan
from ..backends.gradients import rows_of
from ..backends.overflow import NotFinite, explained
from ..backends.source_rows import give_rows
from ..protos.errors import Internal, ProbewireError, error_from_code
from .admission import Item
from .delivery import Job
from .fair_queue import FairQueue
from .prepared import PreparedInput
from .tempo import Tempo

__all__ = ["GRADIENT_COST", "Forwards", "as_internal", "told"]

log = logging.getLogger(__name__)

GRADIENT_COST = 4
"""A row of a gradient takes as much memory as this many of a run: what the backward needs is kept."""


class Forwards:
    """Owns the turn of everything that does not generate; used by the model's thread."""

    def __init__(
        self,
        queue: FairQueue[Item],
        tempo: Tempo,
        drop: Callable[[Job, ProbewireError], None],
        advance: Callable[[Job], None],
    ) -> None:
        """`drop` ends a job with an error; `advance` queues what waited for an input's rows."""
        self._queue, self._tempo, self._drop, self._advance = queue, tempo, drop, advance
        self._trunks: dict[int, Any] = {}
        """Sweep input → what its variants share."""

    def some(self, backend: Backend, *, generating: bool) -> None:
        """One batched forward over what fits together; a short one while others wait for their next token."""
        limits = backend.limits
        batch = self._batch(limits.chunk_tokens if generating else limits.max_run_tokens)
        if not batch:
            return
        job, item, first = batch[0]
        try:
            if item.variants and first is item.sequence:
                self._sweep(backend, job, item, limits.chunk_tokens if generating else limits.max_run_tokens)
                return
            sequences = [sequence for _, _, sequence in batch]
            results = backend.run(sequences) if first.backward is None else backend.gradients(sequences)
        except Exception as error:  # the whole forward failed: say so to each, and live on
            log.exception("a run failed")
            self._trunks.pop(id(item), None)
            for each, _, _ in batch:
                self._drop(each, as_internal("run", error))
            return
        self._tempo.ran(sum(len(sequence.tokens) for sequence in sequences))
        for (job, item, sequence), result in zip(batch, results, strict=True):
            self._ran(backend, job, item, sequence, result)

    def _batch(self, most: int) -> list[tuple[Job, PreparedInput, Sequence]]:
        """The next forwards of one kind, as many as `most` token rows hold, at least one; a sweep comes alone."""
        batch: list[tuple[Job, PreparedInput, Sequence]] = []
        longest, kind = 0, None
        while len(self._queue):
            user, (job, item) = next(self._queue.candidates({}))
            if job.ended:
                self._queue.pop(user)
                continue
            source = item.source if item.source is not None and item.item.name not in job.prepared.rows else None
            sequence = source or item.sequence
            assert sequence is not None
            sweep = bool(item.variants) and sequence is item.sequence
            own_kind = "sweep" if sweep else None if sequence.backward is None else sequence.backward.kind
            rows = len(sequence.tokens) if sequence.backward is None else rows_of(sequence) * GRADIENT_COST
            longest = max(longest, rows)
            if batch and (own_kind != kind or sweep or longest * (len(batch) + 1) > most):
                break
            kind = own_kind
            self._queue.pop(user)
            if not sweep:  # charged by the plans that it takes
                self._queue.ledger.charge(user, rows)
            if sequence is item.sequence and not sequence.begun:
                job.admitted(item)
            batch.append((job, item, sequence))
            if sweep:
                break
        return batch

    def _ran(self, backend: Backend, job: Job, item: PreparedInput, sequence: Sequence, result: StepResult) -> None:
        if result.error is not None:
            self._drop(job, told(backend, result))
        elif sequence is item.source:
            job.take_source_rows(item, result)
            self._advance(job)
        else:
            job.deliver_run(item, result)

    def _sweep(self, backend: Backend, job: Job, item: PreparedInput, most: int) -> None:
        """The next plans of a sweep; the rest queues again, behind others' work."""
        sequence, item.queued = item.sequence, False
        assert sequence is not None
        chosen = _next_plans(item, most)
        variants = [_variant(job, sequence, item.variants[i], f"{sequence.id}.{i}") for i in chosen]
        for variant in variants:
            backend.bind(variant.plan)
        if job.prepared.share and id(item) not in self._trunks:
            self._trunks[id(item)] = backend.trunk(sequence)
        results = backend.sweep(variants, self._trunks.get(id(item)))
        rows = sum(rows for rows, _ in item.order[item.n_swept : item.n_swept + len(chosen)])
        self._queue.ledger.charge(job.caller.user.name, rows)
        self._tempo.ran(rows)
        for bound in (bound for variant in variants for bound in variant.plan.hooks):
            bound.device = bound.source = None  # measured plans keep no tensors
        item.n_swept += len(chosen)
        failed = next(
            ((i, result) for i, result in zip(chosen, results, strict=True) if result.error is not None), None
        )
        done = item.n_swept == len(item.variants)
        if failed is not None or done:
            self._trunks.pop(id(item), None)
        if failed is not None:
            self._drop(job, told(backend, failed[1], f"plan {failed[0]}: "))
            return
        job.deliver_measured(item, chosen, [result.measured for result in results], done=done)
        if not done:
            self._advance(job)

    def forget(self, item: PreparedInput) -> None:
        """An input that is gone keeps no memory."""
        self._trunks.pop(id(item), None)


def _next_plans(item: PreparedInput, most: int) -> list[int]:
    """As many as `most` token rows hold; at least one."""
    chosen: list[int] = []
    for rows, index in item.order[item.n_swept :]:
        most -= rows
        if chosen and most < 0:
            break
        chosen.append(index)
    return chosen


def _variant(job: Job, base: Sequence, plan: BoundPlan, name: str) -> Sequence:
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
