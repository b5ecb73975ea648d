"""Gradients on MLX: the forward as a function of a zero added at every watched site, and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence as SequenceOf

import mlx.core as mx
import numpy as np

from ...protos.model import ModelInfo
from ...protos.sites import ATTENTION_SITES, Site
from ..backward import Backward, BoundBackward
from ..base import Sequence, StepResult
from ..executor import Executor, Slot
from ..gradients import finish, slots_of
from ..metrics import measure_logits
from .attention import Attention
from .norms import Norms
from .taps import Taps

__all__ = ["MlxBackward", "MlxGradients"]

_LOGITS = Site("logits")

Key = tuple[Site, int]


class MlxBackward(Backward):
    """Adds a zero at each watched tensor: the derivative with respect to it is the tensor's gradient."""

    zeros: dict[Key, mx.array]

    def _watch(self, site: Site, index: int, value: mx.array, *, in_place: bool) -> mx.array:
        zero = self.zeros.get((site, index))
        if zero is None:  # watched as a target only
            return value
        if in_place:
            value[...] = value + zero  # rebinds the object that the residual branch holds too
            return value
        return value + zero


class MlxGradients:
    """Takes gradients on one model."""

    def __init__(
        self,
        executor: Executor,
        taps: Taps,
        attention: Attention,
        norms: Norms,
        dtype: mx.Dtype,
        body: Callable[[mx.array], mx.array],
        head: Callable[[Slot, mx.array], mx.array],
        make: Callable[[BoundBackward, list[Slot]], MlxBackward],
    ) -> None:
        """`body`: token ids to final-norm rows. `head`: these, for one slot, to the logits that its metric reads: [vocab]."""
        self.executor, self.taps, self.attention, self.norms, self.dtype = executor, taps, attention, norms, dtype
        self.body, self.head, self.make = body, head, make

    def __call__(self, sequences: SequenceOf[Sequence]) -> list[StepResult]:
        """See Backend.gradients."""
        how = sequences[0].backward
        assert how is not None
        slots, shares, layout = slots_of(sequences)
        backward = self.make(how, slots)
        backward.shares = dict(enumerate(shares))
        ids = np.zeros(layout, dtype=np.int64)
        for slot in slots:
            assert slot.tokens is not None
            ids[slot.batch, : slot.stop] = slot.tokens
        keys = _keys(backward)
        values: dict[int, mx.array] = {}

        def total(zeros: list[mx.array]) -> mx.array:
            backward.zeros = dict(zip(keys, zeros, strict=True))
            values.clear()
            values.update(self._values(backward, slots, self._forward(backward, slots, mx.array(ids), layout)))
            return mx.stack(list(values.values())).sum() if values else mx.array(0.0)

        start = [mx.zeros(_shape(backward.info, site, slots, index, layout), self.dtype) for site, index in keys]
        try:
            grads = mx.grad(total)(start) if keys else [total([])][:0]
        finally:
            self.norms.linear, self.executor.backward = False, None
        return finish(self.executor, slots, values, dict(zip(keys, grads, strict=True)))

    def _forward(self, backward: MlxBackward, slots: list[Slot], ids: mx.array, layout: tuple[int, int]) -> mx.array:
        self.executor.begin(slots, layout, backward)
        self.taps.attach(self.executor.asked)
        self.attention.begin(self.executor.asked)
        self.norms.linear = "ln" in backward.how.rules
        return self.body(ids)

    def _values(self, backward: MlxBackward, slots: list[Slot], hidden: mx.array) -> dict[int, mx.array]:
        """Slot index → its metric."""
        ops, values = self.executor.ops, dict[int, mx.array]()
        for index, slot in enumerate(slots):
            if slot.error is not None:
                continue
            [metric] = slot.sequence.metrics
            row = self.head(slot, hidden) if metric.site is None or _LOGITS in slot.plan.taps else None
            if metric.site is not None:
                values[index] = backward.coordinates[index]
            else:
                values[index] = measure_logits(ops, metric, ops.f32(row))
        return values


def _keys(backward: MlxBackward) -> list[Key]:
    """What is watched: a site over the whole batch, but for those computed one sequence at a time."""
    keys: list[Key] = []
    for site in backward.wanted:
        if site.name in ATTENTION_SITES or site.name == "logits":
            keys += [(site, i) for i, slot in enumerate(backward.slots) if site in slot.plan.taps]
        else:
            keys.append((site, -1))
    return keys


def _shape(info: ModelInfo, site: Site, slots: list[Slot], index: int, layout: tuple[int, int]) -> tuple[int, ...]:
    offered = info.site(site.name)
    assert offered is not None
    if index < 0:
        return (*layout, *offered.widths)
    n = slots[index].n
    return (1, n, *offered.widths) if site == _LOGITS else (n, offered.widths[0], n)
