"""Generation through the library's own caches, the tokens of several sequences in one forward.

Prompts are read one after another, as in `AloneEngine`. Whoever generates goes forward with the others: their caches are
stacked, the shorter padded on the left, and lie so until one comes or leaves. What needs an array library stands behind
`BatchForward`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..protos.sites import Site
from .alone_engine import AloneEngine, CacheCost, Live, OwnForward, told_of
from .hooks.executor import Executor
from .hooks.row_span import RowSpan
from .hooks.sequence import Sequence, StepResult
from .model.chunk import SLICE_S
from .model.limits import Limits
from .sampling.choice import Choice

__all__ = ["MOST_PADDING", "BatchEngine", "BatchForward"]

_LOGITS = Site("logits")
MOST_PADDING = 2.0
"""Sequences share a forward as long as the longest's positions, for each of them, are not more than so many times their own."""


class BatchForward(OwnForward, Protocol):
    """The model's own forward over one row of each of several sequences."""

    def stacking_fault(self) -> str:
        """Why caches of this model cannot be stacked, or empty."""
        ...

    def mask_otherwise(self) -> bool:
        """Hide padding by another kind of mask from now on; False where there is none left."""
        ...

    def stack(self, states: list[Any], lengths: SequenceOf[int]) -> Any:
        """Caches of so many positions as one; `states` is emptied on the way. Raises ValueError, and leaves them, where
        they are not alike."""
        ...

    def unstack(self, stacked: Any, lengths: SequenceOf[int]) -> list[Any]:
        """Each sequence's own again, of so many positions; the stacked one is used up."""
        ...

    def rows_of_each(self, stacked: Any, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> Any:
        """Final-norm rows [sequence, 1, d_model] of each one's token at its position; the caches take them in."""
        ...


@dataclass(eq=False, slots=True)
class _Group:
    """Sequences that share their forwards."""

    members: list[Live]
    stacked: Any = None
    """Their caches; None before their first forward, while each still has its own."""


class BatchEngine(AloneEngine):
    """See AloneEngine: so it goes until `batching` is set, as nobody has proven more."""

    forward: BatchForward

    def __init__(
        self, forward: BatchForward, executor: Executor, limits: Limits, cost: CacheCost, free_bytes: int | None
    ) -> None:
        super().__init__(forward, executor, limits, cost, free_bytes)
        self.batching = False
        self.n_shared = 0
        """Forwards so far that several sequences shared."""
        positions = limits.cache_tokens * cost.position
        self._for_padding = positions if free_bytes is None else min(positions, free_bytes - self.max_bytes)
        """Bytes that padding may take where every sequence has all it reserved."""
        self._kept = 0
        self._groups: list[_Group] = []

    @property
    def cache_held(self) -> int:
        """Bytes of the sequences' caches, padding included."""
        return self.forward.held([*(live.state for live in self._live.values()), *(g.stacked for g in self._groups)])

    def admit(self, sequence: Sequence, *, keep_tokens: int = 0) -> bool:
        """See AloneEngine. Padding gives way."""
        if not super().admit(sequence, keep_tokens=keep_tokens):
            return False
        self._kept = self.cost.of(keep_tokens) if keep_tokens else 0
        if sum(map(self._padding, (group.members for group in self._groups))) > self._spare():
            self._part()
        return True

    def remove(self, sequence: Sequence) -> None:
        """Let go of a sequence's cache."""
        self._part(sequence)
        super().remove(sequence)

    def pause(self, sequence: Sequence) -> None:
        """Leave a sequence out of the coming steps; its cache stays."""
        self._part(sequence)
        super().pause(sequence)

    def close(self) -> None:
        """Drop every sequence."""
        self._groups.clear()
        super().close()

    def step(self) -> list[StepResult]:
        """See AloneEngine: whoever generates shares a forward."""
        left = {name: live.left for name, live in self._live.items() if not live.paused}
        shared = self._shared([self._live[name] for name, n in left.items() if n == 1 and self._live[name].done])
        results: list[StepResult] = []
        gone = set[int]()
        end_s = time.perf_counter() + SLICE_S
        for name, rows in self.turns.next(left, self.limits.chunk_tokens):
            group = shared.get(name)
            if group is not None and id(group) in gone:
                continue
            if results and time.perf_counter() > end_s:
                break
            if group is None or not self._stacked(group):
                results.append(self._step(self._behind(name), rows))
            else:
                gone.add(id(group))
                results += self._step_of_each(group)
        return results

    # ---- who goes with whom ----

    def _shared(self, generating: list[Live]) -> dict[str, _Group]:
        """Name → its group, of those that are not by themselves."""
        grouped = [live for group in self._groups for live in group.members]
        if set(map(id, generating)) != set(map(id, grouped)):
            self._part()
            self._groups = [_Group(members) for members in self._parts(generating)] if self.batching else []
        return {live.sequence.id: group for group in self._groups for live in group.members if len(group.members) > 1}

    def _parts(self, generating: list[Live]) -> list[list[Live]]:
        """Of like lengths, such that padding takes nobody's memory."""
        parts: list[list[Live]] = []
        spare = self._spare()
        for live in sorted(generating, key=lambda live: live.done):
            with_it = [*parts[-1], live] if parts else []
            most = MOST_PADDING * sum(one.done for one in with_it)
            more = self._padding(with_it) - (self._padding(parts[-1]) if parts else 0)
            if with_it and (not self.cost.position or (len(with_it) * live.done <= most and more <= spare)):
                parts[-1].append(live)
                spare -= more
            else:
                parts.append([live])
        return parts

    def _padding(self, members: SequenceOf[Live]) -> int:
        """Bytes that it takes to make them all as long as the longest."""
        longest = max((live.done for live in members), default=0)
        return self.cost.position * sum(longest - live.done for live in members)

    def _spare(self) -> int:
        reserved = sum(self.cost.of(live.sequence.plan.n_rows + 1) for live in self._live.values())
        return self._for_padding + self.max_bytes - reserved - self._kept

    def _part(self, sequence: Sequence | None = None) -> None:
        """Give every sequence its own cache again: of the group that has this one, or of all."""
        for group in list(self._groups):
            if sequence is None or any(live.sequence is sequence for live in group.members):
                self._groups.remove(group)
                if group.stacked is not None:
                    stacked, group.stacked = group.stacked, None
                    lengths = [live.done for live in group.members]
                    for live, state in zip(group.members, self.forward.unstack(stacked, lengths), strict=True):
                        live.state = state

    def _stacked(self, group: _Group) -> bool:
        """Whether its caches are one, or can be made so."""
        if group.stacked is None:
            states = [live.state for live in group.members]
            for live in group.members:
                live.state = None  # what is stacked must be held by nobody else, to be freed on the way
            try:
                group.stacked = self.forward.stack(states, [live.done for live in group.members])
            except ValueError:
                for live, state in zip(group.members, states, strict=True):
                    live.state = state
        return group.stacked is not None

    # ---- a forward ----

    def _step_of_each(self, group: _Group) -> list[StepResult]:
        members = [self._behind(live.sequence.id) for live in group.members]
        longest = max(live.done for live in members)
        tokens = np.array([live.sequence.tokens[live.done] for live in members], dtype=np.int64)
        positions = np.array([live.done for live in members], dtype=np.int64)
        slots = [
            RowSpan(live.sequence, i, 0, 1, live.done, tokens[i : i + 1], keys=(longest - live.done, longest + 1))
            for i, live in enumerate(members)
        ]
        self.executor.begin(slots, (len(slots), 1))
        choices: list[Choice | None] = [None] * len(slots)
        try:
            self.forward.attach()
            rows = self.forward.rows_of_each(group.stacked, tokens, positions)
            for live in members:
                live.done += 1
            self.n_shared += 1
            choices = self._sampled_of_each(slots, rows)
        except Exception as error:  # noqa: BLE001 - of this forward alone: whoever is not in it goes on
            self._groups.remove(group)  # how far its caches came is not known
            for slot in slots:
                slot.error = slot.error or told_of(error)
        return self._results(slots, choices)

    def _sampled_of_each(self, slots: list[RowSpan], rows: Any) -> list[Choice | None]:
        """The token that follows each row; hooks at the logits act before."""
        with self.executor.deltas.head([(slot, slot.positions) for slot in slots]):
            logits = self.forward.logits(rows)
        wanting = [slot for slot in slots if slot.error is None and _LOGITS in slot.plan.sites]
        if wanting:
            logits = self.executor.tap(self.executor.points.logits, logits, slots=wanting)
        on_host = self.executor.ops.to_host([logits[:, -1]])[0].astype(np.float32)
        return [
            None if slot.error is not None else self._choose(slot, row)
            for slot, row in zip(slots, on_host, strict=True)
        ]
