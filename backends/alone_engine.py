"""Generation one sequence after another, each through the library's own cache: for models whose batches nobody has proven.

A step runs the forward of each live sequence by itself, so that a neighbour cannot change a number. What needs an array
library stands behind `OwnForward`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..protos.errors import Internal, ProbewireError, ResourceExhausted
from ..protos.sites import Site
from ..protos.tensors import Array
from .hooks.executor import Executor
from .hooks.row_span import RowSpan
from .hooks.sequence import Rows, Sequence, StepResult
from .hooks.stepping import not_finite, result_of, sampled_logprob_rows
from .model.chunk import SLICE_S
from .model.limits import Limits
from .sampling.choice import Choice, logprobs_of
from .turns import Turns

__all__ = ["AloneEngine", "CacheCost", "Live", "OwnForward", "told_of"]

_LOGITS = Site("logits")


@dataclass(frozen=True, slots=True)
class CacheCost:
    """Bytes that the library's cache of one sequence takes."""

    state: int
    """Whatever its length: recurrent states, convolutions."""
    position: int
    """For each position more."""

    def of(self, n_tokens: int) -> int:
        """Of a sequence of so many positions."""
        return self.state + n_tokens * self.position


class OwnForward(Protocol):
    """The model's own forward over one sequence, which keeps what later rows need."""

    def new_state(self) -> Any:
        """Of a sequence of which nothing has been read."""
        ...

    def rows(self, state: Any, tokens: NDArray[np.int64], position: int) -> tuple[Any, Any]:
        """Final-norm rows [1, row, d_model] of the tokens from a position on, and the state behind them."""
        ...

    def logits(self, rows: Any) -> Any:
        """[1, row, vocab], as the model gives them."""
        ...

    def attach(self) -> None:
        """Have the points that the executor asks for reach it."""
        ...

    def held(self, states: Iterable[Any]) -> int:
        """Bytes in the states of some sequences."""
        ...


@dataclass(eq=False, slots=True)
class Live:
    """One of its sequences."""

    sequence: Sequence
    state: Any = None
    done: int = 0
    """Rows read so far."""
    paused: bool = False

    @property
    def left(self) -> int:
        return len(self.sequence.tokens) - self.done


class AloneEngine:
    """The sequences that generate beside each other on one model. See Engine."""

    def __init__(
        self, forward: OwnForward, executor: Executor, limits: Limits, cost: CacheCost, free_bytes: int | None
    ) -> None:
        """`free_bytes`: of memory that caches may take; None where nobody knows."""
        self.forward, self.executor, self.limits, self.cost = forward, executor, limits, cost
        wanted = limits.n_slots * cost.state + limits.cache_tokens * cost.position
        self.max_bytes = wanted if free_bytes is None else min(wanted, free_bytes)
        self.turns = Turns(limits.chunk_tokens)
        self._live: dict[str, Live] = {}
        """Whoever has waited longest for a forward, first."""

    @property
    def active(self) -> list[Sequence]:
        """Sequences in the batch, paused ones too."""
        return [live.sequence for live in self._live.values()]

    def reason_not_to_fit(self, n_tokens: int) -> str | None:
        """Why a sequence of this many positions can never be admitted, or None."""
        need = self.cost.of(n_tokens)
        if need > self.max_bytes:
            return f"needs {need:,} bytes of cache; at most {self.max_bytes:,} are there"
        return self.limits.reason_not_to_fit(n_tokens)

    def admit(self, sequence: Sequence, *, keep_tokens: int = 0) -> bool:
        """Take a sequence in if the cache for all its tokens is free, and that of `keep_tokens` beside it."""
        if len(self._live) >= self.limits.n_slots:
            return False
        lengths = [s.plan.n_rows + 1 for s in (*self.active, sequence)]
        pages = sum(map(self.limits.pages, (*lengths, *([keep_tokens] if keep_tokens else []))))
        kept = self.cost.of(keep_tokens) if keep_tokens else 0
        if pages > self.limits.n_pages or kept + sum(map(self.cost.of, lengths)) > self.max_bytes:
            return False
        self._live[sequence.id] = Live(sequence, self.forward.new_state())
        return True

    def remove(self, sequence: Sequence) -> None:
        """Let go of a sequence's cache."""
        self._live.pop(sequence.id, None)

    def pause(self, sequence: Sequence) -> None:
        """Leave a sequence out of the coming steps; its cache stays."""
        if (live := self._live.get(sequence.id)) is not None:
            live.paused = True

    def resume(self, sequence: Sequence) -> None:
        """Undo `pause`."""
        if (live := self._live.get(sequence.id)) is not None:
            live.paused = False

    @property
    def cache_held(self) -> int:
        """Bytes of the sequences' caches."""
        return self.forward.held([live.state for live in self._live.values()])

    def close(self) -> None:
        """Drop every sequence."""
        self._live.clear()

    def step(self) -> list[StepResult]:
        """A forward of each live sequence, one after another; of prompts, a chunk at a time. What a slice of time does not
        hold comes first in the next step."""
        left = {name: live.left for name, live in self._live.items() if not live.paused}
        results: list[StepResult] = []
        end_s = time.perf_counter() + SLICE_S
        for name, rows in self.turns.next(left, self.limits.chunk_tokens):
            if results and time.perf_counter() > end_s:
                break
            results.append(self._step(self._behind(name), rows))
        return results

    def _behind(self, name: str) -> Live:
        """A sequence, which comes behind all others from now on."""
        live = self._live.pop(name)
        self._live[name] = live
        return live

    def _step(self, live: Live, n_rows: int) -> StepResult:
        sequence, start, stop = live.sequence, live.done, live.done + n_rows
        tokens = np.array(sequence.tokens[start:stop], dtype=np.int64)
        slot = RowSpan(sequence, 0, 0, n_rows, start, tokens, keys=(0, stop))
        self.executor.begin([slot], (1, n_rows))
        choice: Choice | None = None
        try:
            self.forward.attach()
            rows, live.state = self.forward.rows(live.state, tokens, start)
            live.done = stop
            choice = self._sampled(slot, rows, ends=stop == len(sequence.tokens))
        except Exception as error:  # noqa: BLE001 - of its own forward alone: its neighbours go on
            slot.error = slot.error or told_of(error)
        [result] = self._results([slot], [choice])
        return result

    def _sampled(self, slot: RowSpan, rows: Any, *, ends: bool) -> Choice | None:
        """The token that follows the rows, where they end what there is; hooks at the logits act before."""
        n = slot.n
        asks = slot.plan.wants_prompt_logits and slot.position < slot.sequence.prompt_length - 1
        first = 0 if asks else n - 1
        if slot.error is not None or not (asks or ends):
            return None
        with self.executor.deltas.head([(slot, slot.positions[first:])]):
            logits = self.forward.logits(rows[:, first:])
        if _LOGITS in slot.plan.sites:
            part = RowSpan(slot.sequence, 0, 0, n - first, slot.position + first, None)
            part.tokens = None if slot.tokens is None else slot.tokens[first:]
            part.conditions = {key: mask[first:] for key, mask in slot.conditions.items()}
            logits = self.executor.tap(self.executor.points.logits, logits, slots=[part])
            slot.error = slot.error or part.error
        if not ends or slot.error is not None:
            return None
        return self._choose(slot, self.executor.ops.to_host([logits[0, -1]])[0].astype(np.float32))

    def _choose(self, slot: RowSpan, row: Array) -> Choice | None:
        if not np.isfinite(row.max()):  # not a number is larger than all
            slot.error = not_finite(slot)
            return None
        sequence = slot.sequence
        try:
            token = sequence.choose(row, sequence.n_generated)
        except ProbewireError as error:
            slot.error = error
            return None
        return logprobs_of(row, token, slot.n_top) if slot.wants_logprobs else Choice(token)

    def _results(self, slots: SequenceOf[RowSpan], choices: SequenceOf[Choice | None]) -> list[StepResult]:
        """What a forward brought to each of its sequences; those that failed are let go of."""
        captured: dict[int, list[Rows]] = {}
        try:
            captured = self.executor.collect()
        except Exception as error:  # noqa: BLE001 - as in `_step`
            self.executor.end()
            for slot in slots:
                slot.error = slot.error or told_of(error)
        results: list[StepResult] = []
        for slot, choice in zip(slots, choices, strict=True):
            sequence = slot.sequence
            rows = captured.get(id(sequence), [])
            if slot.error is not None:
                self.remove(sequence)
            elif choice is not None:
                rows = rows + sampled_logprob_rows(slot, choice)
                sequence.tokens.append(choice.token)
            results.append(result_of(slot, rows, choice))
        return results


def told_of(error: Exception) -> ProbewireError:
    """What the library raised in a sequence's forward, as its caller is told."""
    if isinstance(error, ProbewireError):
        return error
    text = f"the forward of this sequence failed: {type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return ResourceExhausted(f"{text}; shorten the prompt, or try again when fewer sequences run")
    return Internal(text)
