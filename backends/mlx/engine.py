"""Generation over mlx-lm's BatchGenerator, driven step by step by our own thread.

It runs one forward ahead of the token it returns, so a forward's rows and token are kept until the step after, and
dropped when their sequence has left by then. It never ends a sequence; we do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator
from numpy.typing import NDArray

from ...protos.errors import ProbewireError
from ...protos.sites import Site
from ..hooks.executor import Executor
from ..hooks.row_span import RowSpan
from ..hooks.sequence import Rows, Sequence, StepResult
from ..hooks.stepping import result_of, sampled_logprob_rows
from ..model.limits import Limits
from ..sampling.choice import Choice
from .attention import Attention
from .cache import BatchCache, BatchStates, Owner, owned
from .forward import Forward
from .ops import to_numpy
from .taps import Taps

__all__ = ["MlxEngine"]

_LOGITS = Site("logits")
_STEPS_BETWEEN_SWEEPS = 64
_NEVER = 1 << 30  # our scheduler ends a sequence, the engine never does


@dataclass(eq=False, slots=True)
class _Paused:
    """A sequence that is left out for now."""

    caches: list[Any] = field(default_factory=list[Any])
    outcomes: list[Forward] = field(default_factory=list[Forward])


class MlxEngine:
    """The sequences that generate together on one model."""

    def __init__(
        self,
        body: Callable[..., mx.array],
        head: Callable[[mx.array], mx.array],
        executor: Executor,
        attention: Attention,
        taps: Taps,
        limits: Limits,
        caches: Callable[[Owner], list[Any]],
        *,
        padded: bool,
    ) -> None:
        """`caches`: one a layer, for a sequence that is to generate. `padded`: whether prompts may be read side by side, the
        shorter padded: keys are masked, but a state would take the padding in."""
        self.caches, self.padded = caches, padded
        self.body, self.head, self.executor, self.attention, self.taps = body, head, executor, attention, taps
        self.limits = limits
        self.owners: dict[str, Owner] = {}
        self.paused: dict[str, _Paused] = {}
        self.leaving: list[int] = []
        """Numbers of removed sequences that are still in the engine's batch."""
        self.pending: list[Forward] = []
        """Forwards that sampled, in order; a step hands out those of the step before."""
        self.read: list[Forward] = []
        """Forwards of this step that only read prompts."""
        self.logits: mx.array | None = None
        self.n_steps = 0
        self.generator = self._generator()

    def _generator(self) -> BatchGenerator:
        model: Any = self._forward
        return BatchGenerator(
            model,
            max_tokens=_NEVER,
            sampler=self._sample,
            completion_batch_size=self.limits.n_slots,
            prefill_batch_size=self.limits.n_slots if self.padded else 1,
            prefill_step_size=self.limits.chunk_tokens,
            stream=mx.default_stream(mx.default_device()),
        )

    @property
    def active(self) -> list[Sequence]:
        """Sequences in the batch, paused ones too."""
        return [owner.sequence for owner in self.owners.values()]

    @property
    def cache_held(self) -> int:
        """Bytes of keys and values held, for sequences in the batch and paused ones."""
        paused = sum(cache.nbytes for one in self.paused.values() for cache in one.caches)
        return self.generator.prompt_cache_nbytes + paused

    def reason_not_to_fit(self, n_tokens: int) -> str | None:
        """Why a sequence of this many positions can never be admitted, or None."""
        return self.limits.reason_not_to_fit(n_tokens)

    def admit(self, sequence: Sequence, *, keep_tokens: int = 0) -> bool:
        """Put a sequence in the batch if there is cache for it: the batch is a rectangle, as long as its longest."""
        sizes = [s.plan.n_rows + 1 for s in (*self.active, sequence)]
        if len(sizes) > self.limits.n_slots or max(sizes) * len(sizes) + keep_tokens > self.limits.cache_tokens:
            return False
        owner = Owner(sequence)
        self.owners[sequence.id] = owner
        self._insert(owner, sequence.tokens, self.caches(owner))
        return True

    def remove(self, sequence: Sequence) -> None:
        """Free a sequence's cache: at once when it was the last, with the next step otherwise."""
        owner = self.owners.pop(sequence.id, None)
        if owner is None:
            return
        if self.paused.pop(sequence.id, None) is None:
            self.leaving.append(owner.uid)
        if not self.owners:
            self._let_go()
            self.pending = []

    def pause(self, sequence: Sequence) -> None:
        """Leave a sequence out of the coming steps; its cache, and what it has sampled ahead, are kept aside."""
        owner = self.owners.get(sequence.id)
        if owner is None or sequence.id in self.paused:
            return
        self._let_go()
        caches: list[Any] = self.generator.extract_cache([owner.uid])[owner.uid][0]
        self.generator.remove([owner.uid])
        mx.eval([cache.state for cache in caches if not cache.empty()])
        aside = _Paused(caches)
        for i, forward in enumerate(self.pending):
            own = [(o, slot) for o, slot in forward.slots if o is owner]
            if own:
                aside.outcomes.append(forward.part(own))
                self.pending[i] = forward.part([(o, slot) for o, slot in forward.slots if o is not owner])
        self.paused[sequence.id] = aside

    def resume(self, sequence: Sequence) -> None:
        """Undo `pause`."""
        aside = self.paused.pop(sequence.id, None)
        if aside is None:
            return
        owner = self.owners[sequence.id]
        tokens = sequence.tokens[owner.position :]
        for forward in aside.outcomes:
            tokens = [forward.tokens()[forward.slots[0][1].batch]]
        self.pending.extend(aside.outcomes)
        self._insert(owner, tokens, aside.caches)

    def step(self) -> list[StepResult]:
        """One forward over the batch, and what the one before brought; a prompt chunk's rows come at once."""
        self._let_go()
        if len(self.paused) == len(self.owners):
            return []
        due, self.pending, self.read = self.pending, [], []
        try:
            self.generator.next()
        except BaseException:
            self.generator = self._generator()  # it stopped half-way; whoever was in it is lost
            self.executor.end()
            raise
        self.executor.end()  # what it captured is with its forward
        self.n_steps += 1
        if self.n_steps % _STEPS_BETWEEN_SWEEPS == 0:
            mx.clear_cache()  # keys grow by new, larger buffers, and MLX keeps the old ones
        return [result for forward in (*due, *self.read) for result in self._results(forward)]

    def close(self) -> None:
        """Drop every sequence."""
        for sequence in self.active:
            self.remove(sequence)
        self.generator.close()

    def _insert(self, owner: Owner, tokens: list[int], caches: list[Any]) -> None:
        [owner.uid] = self.generator.insert([list(tokens)], caches=[caches], all_tokens=[[]])

    def _let_go(self) -> None:
        if self.leaving:
            self.generator.remove(self.leaving)
            self.leaving = []

    def _forward(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """What the engine calls as its model. tokens [batch, row]. Its result is only a shape: see `_sample`."""
        batch, n_rows = tokens.shape
        slots = self._slots(tokens, owned(cache))
        live = [slot for _, slot in slots if slot.position < slot.plan.n_rows]
        self.executor.begin(live, (batch, n_rows))
        asked = self.executor.asked
        self.taps.attach(asked)
        self.attention.begin(asked)
        hidden = self.body(tokens, cache=cache)
        forward = Forward(slots, self.executor.collector)
        samples = slots[0][1].position + slots[0][1].n >= slots[0][0].sequence.prompt_length
        if samples:
            self.pending.append(forward)
            self.logits = self._sampling_logits(live, hidden)
        else:
            self.read.append(forward)
            self._tap_prompt_logits(live, hidden)
            mx.async_eval(forward.captured())
        return mx.zeros((batch, 1, 1))

    def _slots(self, tokens: mx.array, cache: BatchCache | BatchStates) -> list[tuple[Owner, RowSpan]]:
        slots: list[tuple[Owner, RowSpan]] = []
        for i, (owner, n) in enumerate(zip(cache.owners, cache.take_rows(tokens.shape[1]), strict=True)):
            position = owner.position
            end = cache.end if isinstance(cache, BatchCache) else position  # nobody reads keys where there are none
            slot = RowSpan(owner.sequence, i, 0, n, position, keys=(end - position, end + n))
            slot.tokens = self._tokens_of(owner, tokens, slot)
            slots.append((owner, slot))
            owner.position += n
            owner.next_token = None
        return slots

    def _tokens_of(self, owner: Owner, tokens: mx.array, slot: RowSpan) -> NDArray[np.int64] | None:
        """The rows' input tokens; a token sampled just now is waited for only when a hook must know it."""
        known = owner.sequence.tokens
        if slot.position + slot.n <= len(known):
            return np.array(known[slot.position : slot.position + slot.n], dtype=np.int64)
        if owner.next_token is not None:
            return np.array([owner.next_token], dtype=np.int64)
        if owner.sequence.plan.reads_tokens:
            return np.array(tokens[slot.batch, : slot.n], dtype=np.int64)
        return None

    def _sampling_logits(self, live: list[RowSpan], hidden: mx.array) -> mx.array:
        with self.executor.deltas.whole_head():
            logits = self.head(hidden)
        wanting = [slot for slot in live if _LOGITS in slot.plan.sites]
        point = self.executor.points.logits
        return self.executor.tap(point, logits, slots=wanting)[:, -1] if wanting else logits[:, -1]

    def _tap_prompt_logits(self, live: list[RowSpan], hidden: mx.array) -> None:
        """Logits of prompt rows that no token is sampled from, for the hooks that ask for them."""
        for slot in live:
            if slot.error is not None or not slot.plan.wants_prompt_logits:
                continue
            part = RowSpan(slot.sequence, 0, 0, slot.n, slot.position, slot.tokens, conditions=slot.conditions)
            with self.executor.deltas.head([(slot, slot.positions)]):
                logits = self.head(hidden[slot.batch : slot.batch + 1, : slot.n])
            self.executor.tap(self.executor.points.logits, logits, slots=[part])
            slot.error = slot.error or part.error

    def _sample(self, _: mx.array) -> mx.array:
        """The engine's sampler: the next token of every row of the forward just built. Returns [batch]."""
        forward, logits = self.pending[-1], self.logits
        assert logits is not None
        self.logits = None
        if any(slot.wants_logprobs for _, slot in forward.slots):
            forward.logits = logits.astype(mx.float32)
        sampled, forward.largest = mx.argmax(logits, axis=-1), logits.max(axis=-1).astype(mx.float32)
        drawing = [(owner, slot) for owner, slot in forward.slots if slot.sequence.chooses_on_host]
        if drawing:
            sampled = self._draw(forward, drawing, logits, sampled)
        forward.sampled = sampled
        wanted = [] if forward.logits is None else [forward.logits]
        mx.async_eval(sampled, forward.largest, *wanted, *forward.captured())
        return sampled

    def _draw(
        self, forward: Forward, drawing: list[tuple[Owner, RowSpan]], logits: mx.array, sampled: mx.array
    ) -> mx.array:
        """Sampling with noise happens on the host, where both backends draw the same."""
        wide = forward.logits if forward.logits is not None else logits.astype(mx.float32)
        mx.async_eval(sampled, *forward.captured())
        rows, best = to_numpy([wide, sampled])
        tokens = best.astype(np.uint32)
        for owner, slot in drawing:
            sequence = owner.sequence
            index = owner.position - sequence.prompt_length
            if not np.isfinite(rows[slot.batch].max()):
                continue  # its error is told with its outcome
            try:
                tokens[slot.batch] = sequence.choose(rows[slot.batch], index)
            except ProbewireError as error:
                slot.error = slot.error or error
        for owner, slot in forward.slots:
            owner.next_token = int(tokens[slot.batch])
        return mx.array(tokens)

    def _results(self, forward: Forward) -> list[StepResult]:
        """Hand a forward's outcome out, to the sequences that are still here."""
        forward = forward.part([(o, slot) for o, slot in forward.slots if self.owners.get(o.sequence.id) is o])
        if not forward.slots:
            return []
        captured: dict[Sequence, list[Rows]] = {}
        for slot, rows in forward.collector.finish().items():
            captured.setdefault(slot.sequence, []).extend(rows)
        results: list[StepResult] = []
        for slot, choice in forward.choices():
            results.append(self._result(slot, captured.get(slot.sequence, []), choice))
        return results

    def _result(self, slot: RowSpan, rows: list[Rows], choice: Choice | None) -> StepResult:
        sequence = slot.sequence
        if slot.error is not None:
            self.remove(sequence)
        elif choice is not None:
            rows = rows + sampled_logprob_rows(slot, choice)
            sequence.tokens.append(choice.token)
        return result_of(slot, rows, choice)
