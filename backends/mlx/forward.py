"""The outcome of one forward of the engine: captures and sampled tokens, on the device until somebody wants them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..hooks.captures import Collector
from ..hooks.row_span import RowSpan
from ..hooks.stepping import not_finite
from ..sampling.choice import Choice, logprobs_of
from .cache import Owner
from .ops import to_numpy

__all__ = ["Forward"]


@dataclass(eq=False, slots=True)
class Forward:
    """One forward whose outcome has not been handed out."""

    slots: list[tuple[Owner, RowSpan]]
    collector: Collector
    sampled: mx.array | None = None
    """The next token of each row of the batch; None for a forward that only read prompts."""
    logits: mx.array | None = None
    """[batch, vocab], float32, where a log-probability is asked for."""
    largest: mx.array | None = None
    """[batch] of its logits; no number where there is one among them."""

    def part(self, kept: list[tuple[Owner, RowSpan]]) -> Forward:
        """The outcome of some of its sequences."""
        if len(kept) == len(self.slots):
            return self
        return Forward(kept, self.collector.part({slot for _, slot in kept}), self.sampled, self.logits, self.largest)

    def captured(self) -> list[mx.array]:
        """What must be computed with the forward, so that nothing keeps its graph alive."""
        latched = [value for _, slot in self.slots for bound in slot.plan.hooks for value in bound.latch.values()]
        return self.collector.device_tensors() + latched

    def tokens(self) -> list[int]:
        """The sampled token of each row of the batch; empty for a forward that only read prompts."""
        tokens: Any = [] if self.sampled is None else self.sampled.tolist()
        return tokens

    def choices(self) -> Iterator[tuple[RowSpan, Choice | None]]:
        """Each slot with the token sampled from it."""
        tokens, largest = self.tokens(), [] if self.largest is None else np.array(self.largest)
        for _, slot in self.slots:
            if self.sampled is not None and not np.isfinite(largest[slot.batch]):
                slot.error = slot.error or not_finite(slot)
            yield slot, None if self.sampled is None else self._choice(slot, tokens[slot.batch])

    def _choice(self, slot: RowSpan, token: int) -> Choice:
        if not slot.wants_logprobs:
            return Choice(token)
        assert self.logits is not None
        [row] = to_numpy([self.logits[slot.batch]])
        return logprobs_of(row, token, slot.n_top)
