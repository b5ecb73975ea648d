"""Gradients on MLX: the forward as a function of a zero added at every watched site, and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence as SequenceOf

import mlx.core as mx
import numpy as np

from ...protos.model import ModelInfo
from ...protos.sites import ATTENTION_SITES, Site
from ..hooks.backward import Backward
from ..hooks.bound import BoundBackward
from ..hooks.executor import Executor
from ..hooks.gradients import finish, one_prompt, slots_of, spread, values_of
from ..hooks.metrics import INSIDE_MLP, BoundMetric
from ..hooks.row_span import RowSpan
from ..hooks.sequence import Sequence, StepResult
from .attention import Attention
from .norms import Norms
from .taps import Taps

__all__ = ["MlxBackward", "MlxGradients"]

_LOGITS = Site("logits")

Key = tuple[Site, int]


class MlxBackward(Backward):
    """Adds a zero at each watched tensor: the derivative with respect to it is the tensor's gradient."""

    zeros: dict[Key, mx.array]
    leaves: dict[int, mx.array]
    """Layer → the zero added to what its MLP goes on with, where a metric is in that MLP."""

    def _leaf(self, site: Site, value: mx.array) -> mx.array:
        zero = self.leaves.get(site.layer) if site.layer is not None else None
        return mx.stop_gradient(value) if zero is None else mx.stop_gradient(value) + zero

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
        head: Callable[[RowSpan, mx.array, SequenceOf[int]], mx.array],
        make: Callable[[BoundBackward, list[RowSpan], list[BoundMetric] | None], MlxBackward],
    ) -> None:
        """`body`: token ids to final-norm rows. `head`: these, for one slot, to its logits at positions: [row, vocab]."""
        self.executor, self.taps, self.attention, self.norms, self.dtype = executor, taps, attention, norms, dtype
        self.body, self.head, self.make = body, head, make

    def __call__(self, sequences: SequenceOf[Sequence]) -> list[StepResult]:
        """See Backend.gradients."""
        how = sequences[0].backward
        assert how is not None
        shared = one_prompt(sequences)
        slots, shares, layout = slots_of(sequences[:1] if shared else sequences)
        backward = self.make(how, slots, [s.metrics[0] for s in sequences] if shared else None)
        backward.shares = dict(enumerate(shares))
        ids = np.zeros(layout, dtype=np.int64)
        for slot in slots:
            assert slot.tokens is not None
            ids[slot.batch, : slot.stop] = slot.tokens
        try:
            values, grads = (self._of_each if shared else self._of_batch)(backward, slots, mx.array(ids), layout)
        finally:
            self.norms.linear, self.executor.backward = False, None
        if shared:
            slots = spread(self.executor, slots[0], sequences)
        return finish(self.executor, slots, values, grads)

    def _of_batch(
        self, backward: MlxBackward, slots: list[RowSpan], ids: mx.array, layout: tuple[int, int]
    ) -> tuple[dict[int, mx.array], dict[Key, mx.array]]:
        """Each slot's metric, and the gradient of their sum: rows of a batch do not meet, so each has its own."""
        values: dict[int, mx.array] = {}
        keys = _keys(backward)

        def total(zeros: list[mx.array]) -> mx.array:
            backward.zeros = dict(zip(keys, zeros, strict=True))
            values.clear()
            values.update(self._values(backward, slots, ids, layout))
            return mx.stack(list(values.values())).sum() if values else mx.array(0.0)

        start = self._zeros(backward, keys, slots, layout)
        grads = mx.grad(total)(start) if keys else [total([])][:0]
        return values, dict(zip(keys, grads, strict=True))

    def _of_each(
        self, backward: MlxBackward, slots: list[RowSpan], ids: mx.array, layout: tuple[int, int]
    ) -> tuple[dict[int, mx.array], dict[Key, mx.array]]:
        """Many metrics of one forward, and the gradient of each: site → [metric, row, …]."""
        keys, info = _keys(backward), backward.info
        layers = (
            sorted({m.mlp_layer for m in backward.metrics if m.mlp_layer is not None}) if backward.how.direct else []
        )
        belows = [mx.zeros((*layout, info.d_model), self.dtype) for _ in layers]
        start, values = self._zeros(backward, keys, slots, layout), dict[int, mx.array]()

        def ends(zeros: list[mx.array], below: list[mx.array]) -> list[mx.array]:
            """What reaches the MLPs that hold metrics, then every metric."""
            backward.zeros = dict(zip(keys, zeros, strict=True))
            backward.leaves = dict(zip(layers, below, strict=True))
            values.clear()
            values.update(self._values(backward, slots, ids, layout))
            return [backward.cuts[layer][0] for layer in layers] + list(values.values())

        n = len(backward.metrics)
        eye = self.executor.ops.wide(mx.eye(n))
        none = [mx.zeros((n, *layout, info.d_model), self.dtype) for _ in layers]
        own = np.array([[m.mlp_layer == layer for layer in layers] for m in backward.metrics]).reshape(n, len(layers))

        def back(given: list[mx.array]) -> tuple[list[mx.array], list[mx.array]]:
            _, found = mx.vjp(lambda *x: ends(list(x[: len(keys)]), list(x[len(keys) :])), [*start, *belows], given)
            return found[: len(keys)], found[len(keys) :]

        starts = [eye[:, i] for i in range(n)]
        within: list[mx.array] = []
        if layers:
            within, into = mx.vmap(back)([*none, *starts])
            inside = mx.array(own.sum(axis=1)) > 0
            none = [mx.where(mx.array(own[:, i])[:, None, None, None], into[i], 0.0) for i in range(len(layers))]
            starts = [mx.where(inside, 0.0, start) for start in starts]
        grads, _ = mx.vmap(back)([*none, *starts])
        out: dict[Key, mx.array] = {}
        for i, ((site, _), grad) in enumerate(zip(keys, grads, strict=True)):
            if site.layer in layers and site.name in INSIDE_MLP:  # before the start, inside the metrics' own MLP
                belongs = mx.array(own[:, layers.index(site.layer)]).reshape(n, *(1,) * (grad.ndim - 1))
                grad = grad + mx.where(belongs, within[i], 0.0)
            if site.name in ATTENTION_SITES or site == _LOGITS:
                out.update({(site, i): grad[i] for i in range(n)})
            else:
                out[site, -1] = grad[:, 0]
        return values, out

    def _zeros(
        self, backward: MlxBackward, keys: list[Key], slots: list[RowSpan], layout: tuple[int, int]
    ) -> list[mx.array]:
        return [mx.zeros(_shape(backward.info, site, slots, index, layout), self.dtype) for site, index in keys]

    def _values(
        self, backward: MlxBackward, slots: list[RowSpan], ids: mx.array, layout: tuple[int, int]
    ) -> dict[int, mx.array]:
        hidden = self._forward(backward, slots, ids, layout)
        return values_of(self.executor, backward, slots, hidden, self.head)

    def _forward(self, backward: MlxBackward, slots: list[RowSpan], ids: mx.array, layout: tuple[int, int]) -> mx.array:
        self.executor.begin(slots, layout, backward)
        self.taps.attach(self.executor.asked)
        self.attention.begin(self.executor.asked)
        self.norms.linear = "ln" in backward.how.rules
        return self.body(ids)


def _keys(backward: MlxBackward) -> list[Key]:
    """What is watched: a site over the whole batch, but for those computed one sequence at a time."""
    keys: list[Key] = []
    for site in backward.wanted:
        if site.name in ATTENTION_SITES or site.name == "logits":
            keys += [(site, i) for i, slot in enumerate(backward.slots) if site in slot.plan.sites]
        else:
            keys.append((site, -1))
    return keys


def _shape(info: ModelInfo, site: Site, slots: list[RowSpan], index: int, layout: tuple[int, int]) -> tuple[int, ...]:
    offered = info.site(site.name)
    assert offered is not None
    if index < 0:
        return (*layout, *offered.at(site.layer))
    n = slots[index].n
    return (1, n, *offered.widths) if site == _LOGITS else (n, offered.at(site.layer)[0], n)
