"""Events of one or several requests, joined by input into results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import FailedPrecondition, Internal
from ...protos.metrics import Measured
from ...protos.model import Event, Finished, InputStarted, ResolvedHook, Revised, Started, TensorFrame, Token
from ...protos.wire.assemble import assemble
from ..requests.asked import Asked
from .captures import parted
from .input_result import InputResult

__all__ = ["Collector", "SweepCollector"]

_SAME = ("model", "model_hash", "backend", "device", "dtype", "versions")
"""What requests of one call must have in common."""


@dataclass(slots=True)
class _Starts:
    """What the requests of a call said when they began."""

    first: Started | None = None
    inputs: dict[str, InputStarted] = field(default_factory=dict[str, InputStarted])
    hooks: dict[int, ResolvedHook] = field(default_factory=dict[int, ResolvedHook])

    def add(self, event: Started, sources: Iterable[str]) -> None:
        """`sources`: inputs that other requests of the call answer, or none at all does."""
        if self.first is not None:
            changed = [name for name in _SAME if getattr(event, name) != getattr(self.first, name)]
            if changed:
                told = ", ".join(f"{n}: {getattr(self.first, n)!r}, now {getattr(event, n)!r}" for n in changed)
                raise FailedPrecondition(
                    f"the model changed between the requests that these inputs were cut into ({told}); ask again"
                )
        self.first = self.first or event
        only_read = set(sources)
        for begun in event.inputs:
            if begun.name not in self.inputs or begun.name not in only_read:
                self.inputs[begun.name] = begun
        if event.revision == self.first.revision:
            self.hooks.update((hook.hook, hook) for hook in event.hooks)

    @property
    def n_layers(self) -> int:
        """Of the model; 0 where it was not told."""
        return 0 if self.first is None else self.first.n_layers

    @property
    def revision(self) -> int:
        """Of the session, when the first request began."""
        return 0 if self.first is None else self.first.revision

    def joined(self, order: Sequence[str]) -> Started:
        """As one request would have begun. Raises Internal when there was none."""
        if self.first is None:
            raise Internal("the answer ended before it began")
        inputs = tuple(self.inputs[name] for name in dict.fromkeys((*order, *self.inputs)) if name in self.inputs)
        return replace(self.first, inputs=inputs, hooks=tuple(self.hooks[index] for index in sorted(self.hooks)))


class Collector:
    """Events as they come, of run, generate and gradients."""

    def __init__(self) -> None:
        self.n_finished = self.n_tokens = 0
        self._starts = _Starts()
        self._tokens: dict[str, list[Token]] = {}
        self._frames: dict[str, list[TensorFrame]] = {}
        self._finished: dict[str, Finished] = {}
        self._revisions: dict[str, list[Revised]] = {}
        self._measured: dict[str, tuple[float, ...]] = {}

    def add(self, event: Event, sources: Iterable[str] = ()) -> None:
        """`sources`: see `_Starts.add`. Raises FailedPrecondition when another model answers than before."""
        if isinstance(event, Token):
            self._tokens.setdefault(event.input, []).append(event)
            self.n_tokens += 1
        elif isinstance(event, TensorFrame):
            self._frames.setdefault(event.input, []).append(event)
        elif isinstance(event, Finished):
            self._finished[event.input] = event
            self.n_finished += 1
        elif isinstance(event, Revised):
            self._revisions.setdefault(event.input, []).append(event)
        elif isinstance(event, Measured):
            self._measured[event.input] = tuple(event.values.numpy()[:, 0].tolist())
        else:
            self._starts.add(event, sources)
            if event.revision != self._starts.revision:  # the session changed between two requests of the call
                for begun in event.inputs:
                    revised = Revised(begun.name, event.revision, event.hooks)
                    self._revisions.setdefault(begun.name, []).append(revised)

    def whole(self, asked: Asked) -> tuple[Started, dict[str, InputResult]]:
        """The answer by input, in the order asked. Raises Internal when an input that was to be answered did not finish."""
        self._starts.joined(())
        for name in asked.answered:
            if name not in self._finished:
                raise Internal(f"the answer ended before input {name!r} did")
        return self.joined([item.name for item in asked.inputs])

    def joined(self, order: Sequence[str] = ()) -> tuple[Started, dict[str, InputResult]]:
        """What there is by now, by input; those of `order` first. Raises Internal before the first event."""
        started = self._starts.joined(order)
        return started, {begun.name: self._input(begun) for begun in started.inputs}

    def _input(self, begun: InputStarted) -> InputResult:
        name = begun.name
        values, gradients = parted(assemble(self._frames.get(name, ())).values(), self._starts.n_layers)
        return InputResult(
            name,
            begun.token_ids,
            begun.tokens,
            tuple(self._tokens.get(name, ())),
            self._finished.get(name),
            values,
            begun.seed,
            tuple(self._revisions.get(name, ())),
            gradients,
            self._measured.get(name, ()),
        )


class SweepCollector:
    """Events of a sweep as they come."""

    def __init__(self) -> None:
        self.n_measured = 0
        self._starts = _Starts()
        self._parts: dict[str, dict[int, NDArray[np.float64]]] = {}  # input → plan → [target]
        self._finished: set[str] = set()

    def add(self, event: Event, sources: Iterable[str] = ()) -> None:
        """As of Collector."""
        if isinstance(event, Measured):
            rows: Any = zip(event.plans, event.values.numpy(), strict=True)
            self._parts.setdefault(event.input, {}).update(rows)
            self.n_measured += len(event.plans)
        elif isinstance(event, Finished):
            self._finished.add(event.input)
        elif isinstance(event, Started):
            self._starts.add(event, sources)

    def whole(self, asked: Asked) -> tuple[Started, dict[str, NDArray[np.float64]]]:
        """Input → [plan, target]. Raises Internal for an answer with gaps."""
        started = self._starts.joined([item.name for item in asked.inputs])
        found = {name: self._parts.get(name, {}) for name in asked.answered}
        plans = range(len(asked.plans))
        for name, rows in found.items():
            if name not in self._finished or sorted(rows) != list(plans):
                raise Internal(f"the answer for input {name!r} has gaps, or ended early")
        return started, {name: np.stack([rows[plan] for plan in plans]) for name, rows in found.items()}
