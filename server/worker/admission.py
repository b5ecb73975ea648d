"""Who enters the batch next, if anybody can."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ...backends.hooks.base import Backend
from ..auth.users import LOCAL
from .fair_queue import FairQueue
from .input.prepared import PreparedInput
from .output.delivery import ActiveRequest

__all__ = ["Admitted", "Item", "admit_next"]

Item = tuple[ActiveRequest, PreparedInput]


@dataclass(frozen=True, slots=True)
class Admitted:
    """An input that has left the queue: it is in the batch, its job has ended, or its admission failed."""

    job: ActiveRequest
    item: PreparedInput
    error: Exception | None = None


def admit_next(queue: FairQueue[Item], backend: Backend, running: Counter[str]) -> Admitted | None:
    """Take the next input out of the queue and put it in the batch; None when nobody can start now.

    When the cache of the one whose turn it is does not fit, only those who have no slot at all pass them: a large
    request waits until there is room for it, and is not overtaken for ever. `running` counts each user's slots.
    """
    blocked = False
    for user, (job, item) in queue.candidates(running):
        if job.ended:
            return Admitted(*queue.pop(user))
        if blocked and running[user]:
            continue
        try:
            fits = _fits(user, item, backend, running)
        except Exception as error:  # noqa: BLE001 - one request's fault must not end the thread that serves all
            return Admitted(*queue.pop(user), error)
        if not fits:
            blocked = True
            continue
        assert item.sequence is not None
        queue.ledger.charge(user, item.sequence.prompt_length)
        running[user] += 1
        return Admitted(*queue.pop(user))
    return None


def _fits(user: str, item: PreparedInput, backend: Backend, running: Counter[str]) -> bool:
    """Put an input in the batch if its cache is free; who has a slot leaves a slot's share of cache to a newcomer."""
    assert backend.engine is not None
    assert item.sequence is not None
    keeps = running[user] > 0 and user != LOCAL.name
    keep_tokens = backend.limits.cache_tokens // backend.limits.n_slots if keeps else 0
    return backend.engine.admit(item.sequence, keep_tokens=keep_tokens)
