"""Generation over transformers' continuous batching, driven step by step by our own thread.

The stock manager's loop is never started: it would fail every request for one's fault. Sequences are admitted only
when cache for all their tokens is free, so the engine never preempts; prefixes are never shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence as SequenceOf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig
from transformers.generation.continuous_batching.requests import RequestState

from ...protos.errors import ProbewireError
from ...protos.sites import Site
from ..hooks.executor import Executor
from ..hooks.row_span import RowSpan
from ..hooks.sequence import Rows, Sequence, StepResult
from ..hooks.stepping import not_finite, result_of, sampled_logprob_rows
from ..model.limits import Limits
from ..sampling.choice import Choice, logprobs_of
from .attention import Attention
from .ops import to_numpy
from .packed import Packed
from .paged_cache import batch_processor
from .taps import Taps

__all__ = ["TorchEngine"]

_LOGITS, _FINAL_NORM = Site("logits"), Site("final_norm")
_NEVER = 1 << 30  # our scheduler ends a sequence, the engine never does


class TorchEngine:
    """The sequences that generate together on one model."""

    def __init__(
        self,
        model: Any,
        executor: Executor,
        taps: Taps,
        attention: Attention,
        limits: Limits,
        head: Callable[[torch.Tensor], torch.Tensor],
        devices: SequenceOf[torch.device] = (),
    ) -> None:
        """`head`: final-norm rows to logits, as the model gives them. `devices`: of its layers, where they are several."""
        self.model, self.executor, self.taps, self.limits, self.head = model, executor, taps, limits, head
        self.attention = attention
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        self.processor = batch_processor(model, generation, limits, devices)
        model.config._attn_implementation_internal = "sdpa"  # where our dispatcher sits; runs go there too
        self.processor.model_runner._sample = self._sample
        self._all_free = self._free()
        self.sequences: dict[str, Sequence] = {}
        self.paused: dict[str, RequestState] = {}
        self.choices: dict[str, Choice] = {}
        self.hidden: torch.Tensor | None = None
        self.slots: list[RowSpan] = []
        self.producing: list[RowSpan] = []

    @property
    def active(self) -> list[Sequence]:
        """Sequences in the batch, paused ones too."""
        return list(self.sequences.values())

    def reason_not_to_fit(self, n_tokens: int) -> str | None:
        """Why a sequence of this many positions can never be admitted, or None."""
        return self.limits.reason_not_to_fit(n_tokens)

    def admit(self, sequence: Sequence, *, keep_tokens: int = 0) -> bool:
        """Put a sequence in the batch if all its pages are free, and those of `keep_tokens` beside them."""
        pages = self.limits.pages(keep_tokens) + sum(
            self.limits.pages(s.plan.n_rows + 1) for s in self.sequences.values()
        )
        if len(self.sequences) >= self.limits.n_slots:
            return False
        if pages + self.limits.pages(sequence.plan.n_rows + 1) > self.limits.n_pages:
            return False
        state = RequestState(sequence.id, list(sequence.tokens), max_new_tokens=_NEVER)
        self.processor.scheduler.add_waiting_request(state)
        self.sequences[sequence.id] = sequence
        return True

    def remove(self, sequence: Sequence) -> None:
        """Free a sequence's pages."""
        if self.sequences.pop(sequence.id, None) is None:
            return
        self.paused.pop(sequence.id, None)
        scheduler = self.processor.scheduler
        scheduler.set_request_cancellation(sequence.id)
        scheduler.clear_cancelled_requests()

    def pause(self, sequence: Sequence) -> None:
        """Leave a sequence out of the coming steps; its pages stay."""
        scheduler = self.processor.scheduler
        state = scheduler.active_requests.pop(sequence.id, None)
        if state is not None:
            self.paused[sequence.id] = state

    def resume(self, sequence: Sequence) -> None:
        """Undo `pause`."""
        state = self.paused.pop(sequence.id, None)
        if state is not None:
            self.processor.scheduler.active_requests[sequence.id] = state

    @property
    def cache_held(self) -> int:
        """Bytes of cache pages in use (older transformers: pages)."""
        return self._all_free - self._free()

    def _free(self) -> int:
        cache = self.processor.cache
        if hasattr(cache, "compute_free_capacity"):
            return int(cache.compute_free_capacity(relative=False))
        return int(cache.get_num_free_blocks())

    def close(self) -> None:
        """Drop every sequence."""
        for sequence in self.active:
            self.remove(sequence)

    @torch.inference_mode()
    def step(self) -> list[StepResult]:
        """One forward over the batch."""
        if not self.processor.prepare_next_batch():
            return []
        requests = self.processor.inputs_and_outputs.requests_in_batch
        self.slots = self._slots(requests)
        self.producing = [slot for slot, r in zip(self.slots, requests, strict=True) if r.has_new_token]
        self.executor.begin(self.slots, (1, self.slots[-1].stop))
        self.executor.deltas.place_head(self._head_rows())
        self.attention.packed = Packed(self.slots)
        self.taps.attach(self.executor.asked)
        grab = self._grab_hidden() if any(self._wants_prompt_logits(s) for s in self.slots) else None
        try:
            self.processor._generation_step(self.model)
        finally:
            self.attention.packed = None
            if grab is not None:
                grab.remove()
        self.processor.update_batch()
        return self._results()

    def _slots(self, requests: list[Any]) -> list[RowSpan]:
        slots: list[RowSpan] = []
        start = key = 0
        for request in requests:
            sequence = self.sequences[request.state.request_id]
            n, end = request.query_length, request.state.position_offset  # already advanced past these rows
            tokens = np.array(sequence.tokens[end - n : end], dtype=np.int64)
            slots.append(RowSpan(sequence, 0, start, start + n, end - n, tokens, keys=(key, key + end)))
            start, key = start + n, key + end
        return slots

    def _head_rows(self) -> Iterator[tuple[RowSpan, NDArray[np.int64]]]:
        """Whose rows the head reads: each one's last, where a token is sampled from it; all, where the model cuts none."""
        if not self.processor.model_runner.supports_logits_to_keep(self.model):
            return ((slot, slot.positions) for slot in self.slots)
        return ((slot, slot.positions[-1:]) for slot in self.producing)

    def _sample(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Replaces the engine's sampler, which knows no per-request settings. scores: [1, sequence, vocab] float32."""
        self._tap_prompt_logits()  # before the sampled rows, so that rows come in order
        heads = [_logits_slot(slot, i) for i, slot in enumerate(self.producing)]
        wanting = [head for head in heads if _LOGITS in head.plan.sites]
        if wanting:
            own = scores.to(self.model.dtype)  # exact: the engine widened them
            scores = self.executor.tap(self.executor.points.logits, own, slots=wanting).float()
            for head, slot in zip(heads, self.producing, strict=True):
                slot.error = slot.error or head.error
        tokens = self._choose(scores[0])
        output_ids[0, : len(tokens)] = torch.tensor(tokens, dtype=output_ids.dtype, device=output_ids.device)

    def _choose(self, logits: torch.Tensor) -> list[int]:
        best = logits.argmax(dim=-1).tolist()
        finite = torch.isfinite(logits.amax(dim=-1)).tolist()  # not a number is larger than all
        for i, slot in enumerate(self.producing):
            sequence = slot.sequence
            if not finite[i]:
                slot.error = slot.error or not_finite(slot)
                continue
            token, row = best[i], None
            if sequence.chooses_on_host or slot.wants_logprobs:
                row = to_numpy(logits[i])
                try:
                    token = sequence.choose(row, sequence.n_generated)
                except ProbewireError as error:
                    slot.error = slot.error or error
                    continue
            choice = Choice(token)
            if row is not None and slot.wants_logprobs:
                choice = logprobs_of(row, token, slot.n_top)
            self.choices[sequence.id] = choice
            best[i] = token
        return best

    def _wants_prompt_logits(self, slot: RowSpan) -> bool:
        return slot.position < slot.sequence.prompt_length - 1 and slot.plan.wants_prompt_logits

    def _grab_hidden(self) -> Any:
        norm = self.taps.modules[self.executor.points.spot(_FINAL_NORM).point.path]

        def keep(_: Any, __: Any, output: torch.Tensor) -> None:
            self.hidden = output

        return norm.register_forward_hook(keep)

    def _tap_prompt_logits(self) -> None:
        """Logits of prompt rows that no token is sampled from, for the hooks that ask for them."""
        for slot in self.slots:
            if self.hidden is None or slot.error is not None or not self._wants_prompt_logits(slot):
                continue
            stop = slot.stop - 1 if slot in self.producing else slot.stop
            if stop == slot.start:
                continue
            with self.executor.deltas.head([(slot, slot.positions[: stop - slot.start])]):
                logits = self.head(self.hidden[:, slot.start : stop])
            part = RowSpan(slot.sequence, 0, 0, stop - slot.start, slot.position, None)
            part.tokens = None if slot.tokens is None else slot.tokens[: part.n]
            part.conditions = {key: mask[: part.n] for key, mask in slot.conditions.items()}
            self.executor.tap(self.executor.points.logits, logits, slots=[part])
            slot.error = slot.error or part.error
        self.hidden = None

    def _results(self) -> list[StepResult]:
        captured = self.executor.collect()
        results: list[StepResult] = []
        for slot in self.slots:
            sequence = slot.sequence
            choice = self.choices.pop(sequence.id, None)
            rows: list[Rows] = captured.get(id(sequence), [])
            if slot.error is not None:
                self.remove(sequence)
            elif choice is not None:
                rows = rows + sampled_logprob_rows(slot, choice)
                sequence.tokens.append(choice.token)
            results.append(result_of(slot, rows, choice))
        self.slots, self.producing = [], []
        return results


def _logits_slot(slot: RowSpan, index: int) -> RowSpan:
    """The row of a sequence in the logits, where each has one: its last."""
    head = RowSpan(slot.sequence, 0, index, index + 1, slot.position + slot.n - 1, None, error=slot.error)
    head.tokens = None if slot.tokens is None else slot.tokens[-1:]
    head.conditions = {key: mask[-1:] for key, mask in slot.conditions.items()}
    return head
