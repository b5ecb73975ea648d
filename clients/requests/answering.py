"""How a call is answered: in one request, or cut into several, in order, that mean the same together."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from ...protos.errors import ProbewireError, ResourceExhausted
from ...protos.model import MAX_INPUTS, Event, Finished, Started
from ...protos.service import Service
from .asked import Asked
from .for_model import require_model
from .parts import Part, part_from, require_parts, whole
from .steps import Steps, ask, listen

__all__ = ["OnStarted", "answered"]

OnStarted = Callable[[Started], None]
"""Looks at what answers before anything is computed; what it raises cancels the request."""


class Hears(Protocol):
    """What collects events."""

    def add(self, event: Event, sources: Iterable[str] = ()) -> None:
        """`sources`: inputs of the request that others of the call answer, or none does."""
        ...


def answered(
    asked: Asked,
    hears: Hears,
    *,
    on_started: OnStarted | None = None,
    on_event: Callable[[], None] = lambda: None,
) -> Steps[None]:
    """Ask, and hand every event on.

    Requests that are too large for the server are cut further. When a later one fails, or the call is cancelled, what
    earlier ones stored on the server is deleted: nobody would have its ids.
    """
    one = _Request(hears, on_started, on_event)
    if len(asked.answered) > 1 and asked.sampling.seed is None:  # of one request the server draws one seed for all
        asked = replace(asked, sampling=replace(asked.sampling, seed=secrets.randbits(32)))
    try:
        yield from _parts(asked, one)
    except GeneratorExit:
        raise
    except BaseException:
        for capture_id in one.stored:
            with suppress(ProbewireError):
                yield from ask(Service.delete_capture, capture_id, asked.model)
        raise


def _parts(asked: Asked, one: _Request) -> Steps[None]:
    reads = require_parts(asked) if len(asked.inputs) > MAX_INPUTS else None
    part = whole(asked) if reads is None else part_from(asked, reads, 0)
    begin, most = 0, MAX_INPUTS
    while part is not None:
        try:
            yield from one(part)
        except ResourceExhausted as error:
            n_answers = len(part.asked.answered)
            # With a hint to come back it is no matter of size; once begun, events have been handed on.
            if error.retry_after_s is not None or one.begun or n_answers == 1 or _stores(asked):
                raise
            reads, most = require_parts(asked) if reads is None else reads, n_answers // 2
        else:
            begin = part.stop
        part = None if reads is None else part_from(asked, reads, begin, most)


class _Request:
    """One request after the other."""

    def __init__(self, hears: Hears, on_started: OnStarted | None, on_event: Callable[[], None]) -> None:
        self.begun = False
        """Whether the last one was accepted."""
        self.stored: list[str] = []
        """Ids of captures kept on the server."""
        self._hears, self._on_started, self._on_event = hears, on_started, on_event

    def __call__(self, part: Part) -> Steps[None]:
        sources = [item.name for item in part.asked.inputs if item.source_only]
        self.begun = False

        def hear(event: Event) -> None:
            if isinstance(event, Started):
                self.begun = True
                require_model(part.asked.vectors_of, event.model, event.model_hash)
                if self._on_started is not None:
                    self._on_started(event)
            elif isinstance(event, Finished):
                self.stored += [capture.id for capture in event.stored]
            self._hears.add(part.told(event), sources)
            self._on_event()

        yield from listen(getattr(Service, part.asked.operation), part.asked.request(), hear)


def _stores(asked: Asked) -> bool:
    return any(hook.capture is not None and hook.capture.store for hook in asked.plan.hooks)
