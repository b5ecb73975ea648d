"""Sweeps on MLX: variants of one input enter a forward at the layer and position where their edits begin."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx_lm.models.base import create_causal_mask
from numpy.typing import NDArray

from ..hooks.executor import Executor
from ..hooks.row_span import RowSpan
from ..hooks.sweeps import SharedPrefix, Sweeps
from .attention import Attention
from .cache import Layer, RunCache
from .taps import Taps

__all__ = ["MlxSweeps"]


class Model(Protocol):
    """What a sweep asks of the backend."""

    model: Any

    def hidden(self, ids: mx.array, caches: list[RunCache] | None = None) -> mx.array:
        """[batch, row] token ids to final-norm rows."""
        ...

    def logits(self, hidden: mx.array, columns: list[int] | None = None) -> mx.array:
        """Logits of final-norm rows, of all tokens or of some."""
        ...

    def tap_logits(self, slot: RowSpan, hidden: mx.array) -> mx.array:
        """[1, row, vocab] of a slot, after its edits."""
        ...


class _Keeping(RunCache):
    """Keeps a forward's keys and values for a sweep's variants."""

    def __init__(self, layer: Layer, prefix: SharedPrefix) -> None:
        super().__init__(layer)
        self.prefix = prefix

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Tapped, and kept."""
        keys, values = super().update_and_fetch(keys, values)
        self.prefix.keys[self.layer.index], self.prefix.values[self.layer.index] = keys, values
        return keys, values


class _Continuing(RunCache):
    """Rows from a position on, after a prefix's own keys and values."""

    def __init__(self, layer: Layer, prefix: SharedPrefix, position: int) -> None:
        super().__init__(layer)
        self.prefix, self.offset = prefix, position

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The prefix's, then the rows' own, tapped."""
        own = super().update_and_fetch(keys, values)
        if not self.offset:
            return own
        index, batch = self.layer.index, keys.shape[0]
        earlier = (self.prefix.keys[index], self.prefix.values[index])
        whole = [
            mx.concatenate(
                [mx.broadcast_to(old[:, :, : self.offset], (batch, *old.shape[1:2], self.offset, *old.shape[3:])), new],
                axis=2,
            )
            for old, new in zip(earlier, own, strict=True)
        ]
        return whole[0], whole[1]

    def make_mask(self, n: int, *_: Any, **how: Any) -> mx.array | str | None:
        """Causal within the layer's window, after the prefix's rows."""
        if not self.offset:
            return super().make_mask(n, **how)
        return create_causal_mask(n, offset=self.offset, window_size=self.layer.window)


class MlxSweeps(Sweeps):
    """See backends/hooks/sweeps.py."""

    def __init__(self, model: Model, executor: Executor, taps: Taps, attention: Attention, layers: list[Any]) -> None:
        super().__init__(executor, len(layers))
        self.model, self.taps, self.attention, self.layers = model, taps, attention, layers
        self.prefix_now: SharedPrefix | None = None

    def _begin(self, slots: list[RowSpan], layout: tuple[int, int]) -> None:
        self.executor.begin(slots, layout)
        self.taps.attach(self.executor.asked)
        self.attention.begin(self.executor.asked)

    @contextmanager
    def _recording(self, prefix: SharedPrefix) -> Generator[None]:
        self.prefix_now = prefix
        try:
            yield
            mx.eval(prefix.resid, list(prefix.keys.values()), list(prefix.values.values()))
        finally:
            self.prefix_now = None

    def _whole(self, tokens: NDArray[np.int64]) -> mx.array:
        prefix = self.prefix_now
        if prefix is None:
            return self.model.hidden(mx.array(tokens))

        def keep(index: int, hidden: mx.array) -> mx.array:
            prefix.resid[index] = mx.array(hidden)  # edits in place must not reach it
            return hidden

        with _before_layers(self.layers, keep):
            return self.model.hidden(mx.array(tokens), [_Keeping(layer, prefix) for layer in self.attention.layers])

    def _rest(self, prefix: SharedPrefix, position: int, starts: list[int], slots: list[RowSpan]) -> mx.array:
        """Layers before the first start pass on what they get; at each start, rows of the prefix join the batch."""
        n_rows = prefix.n_tokens - position

        def join(index: int, hidden: mx.array) -> mx.array | None:
            here, before = starts.count(index), sum(start < index for start in starts)
            if not here:
                return hidden if before else None
            rows = prefix.resid[index][:, position:]
            entering = mx.broadcast_to(rows, (here, *rows.shape[1:]))
            self.join(slots[: before + here], n_rows)
            return mx.concatenate([hidden, entering]) if before else mx.array(entering)

        self.executor.hold((), self.executor.layout)
        ids = mx.array([slots[0].sequence.tokens[position:]])  # what joins takes their place
        with _before_layers(self.layers, join):
            return self.model.hidden(ids, [_Continuing(layer, prefix, position) for layer in self.attention.layers])

    def _logits(self, hidden: mx.array, columns: list[int] | None) -> mx.array:
        return self.model.logits(hidden, columns)

    def _tap_logits(self, slot: RowSpan, hidden: mx.array) -> mx.array:
        return self.model.tap_logits(slot, hidden)


@contextmanager
def _before_layers(layers: list[Any], see: Any) -> Generator[None]:
    """Let `see(index, hidden)` give what each layer goes on with; None: the layer passes its input on untouched."""
    own = [type(layer) for layer in layers]
    for index, layer in enumerate(layers):
        layer.__class__ = _seen(own[index], index, see)
    try:
        yield
    finally:
        for layer, stock in zip(layers, own, strict=True):
            layer.__class__ = stock


def _seen(stock: type, index: int, see: Any) -> type:
    def call(layer: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        hidden = see(index, x)
        return x if hidden is None else stock.__call__(layer, hidden, *args, **kwargs)

    return type(stock.__name__, (stock,), {"__call__": call})
