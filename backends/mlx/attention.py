"""The attention function that a probed model calls: the stock kernel, plus the sites that live inside attention.

mlx-lm's model modules look `scaled_dot_product_attention` up among their own names. That name is replaced by a
dispatcher, which knows a probed model's calls by the cache they pass, and hands every other call to the stock function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence as SequenceOf
from typing import Any, Protocol

import mlx.core as mx

from ..hooks.executor import Executor
from ..hooks.points import Point
from ..hooks.row_span import RowSpan
from .cache import BatchCache, Layer, RunCache

__all__ = ["Attention"]

_NAME = "scaled_dot_product_attention"
_stock: dict[str, tuple[Callable[..., mx.array], int]] = {}
"""Python module → its own attention function, and how many probed models use it."""


class Witness(Protocol):
    """Is shown what attention is asked."""

    def cached(self, layer: Layer, keys: mx.array, values: mx.array) -> None:
        """New keys and values: [batch, kv_head, row, d_head]."""
        ...

    def called(self, layer: Layer, q: mx.array, k: mx.array, v: mx.array, out: mx.array) -> None:
        """A call: all [batch, head, row, d_head]."""
        ...


class Attention:
    """Taps q, k, v, scores and probabilities of one model; stock attention where nobody asks for the last two."""

    def __init__(self, executor: Executor, windows: SequenceOf[int | None], *, softcap: float | None) -> None:
        self.executor, self.softcap = executor, softcap
        self.layers = [Layer(index, window, self) for index, window in enumerate(windows)]
        self.points: list[dict[str, Point]] = []
        """By layer; filled once the model has been looked at."""
        self.homes: dict[int, int] = {}
        """Number of a cache → the layer whose attention reads it, where it was seen."""
        self.masks: dict[tuple[int | None, int], mx.array] = {}
        """This forward's masks by window and rows: layers share them."""
        self.wanted: set[Point] = set()
        self.witness: Witness | None = None
        """Sees every call, where somebody traces a forward."""
        self.replaced: list[str] = []
        self.capped: list[tuple[Any, type]] = []
        """Attention modules that compute their own softcap in place of calling a function, and their class."""

    @property
    def eager(self) -> bool:
        """The family needs a softcap, which the fused kernel does not have."""
        return self.softcap is not None

    def replace_in(self, model: Any) -> None:
        """Answer for a model's attention from now on, until `restore`."""
        names = {type(module).__module__ for module in model.modules()}
        if self.eager:
            for layer in model.layers:
                module = layer.self_attn
                self.capped.append((module, type(module)))
                module.__class__ = type(type(module).__name__, (type(module),), {"__call__": _capped_by(type(module))})
        for name in sorted(names):
            module = sys.modules[name]
            if not name.startswith("mlx_lm.models.") or not hasattr(module, _NAME):
                continue
            stock, users = _stock.get(name, (getattr(module, _NAME), 0))
            _stock[name] = stock, users + 1
            setattr(module, _NAME, _dispatcher(stock) if not users else getattr(module, _NAME))
            self.replaced.append(name)

    def restore(self) -> None:
        """Give the modules their own function back, when no other probed model uses them."""
        for name in self.replaced:
            stock, users = _stock[name]
            _stock[name] = stock, users - 1
            if users == 1:
                setattr(sys.modules[name], _NAME, stock)
                del _stock[name]
        for module, own_class in self.capped:
            module.__class__ = own_class
        self.replaced, self.capped = [], []

    def begin(self, points: set[Point]) -> None:
        """Start a forward that asks for the given points."""
        self.masks = {}
        self.wanted = points
        if points and not self.points:
            known = self.executor.points
            self.points = [known.attention(self.homes.get(layer.index, layer.index)) for layer in self.layers]

    def tap_keys_values(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """New rows on their way into the cache: [batch, kv_head, row, d_head]."""
        if self.witness is not None:
            self.witness.cached(self.layers[layer], keys, values)
        if not self.wanted:
            return keys, values
        points = self.points[layer]
        return self._tap_heads(points["k"], keys), self._tap_heads(points["v"], values)

    def __call__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: RunCache | BatchCache,
        scale: float,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """q [batch, head, row, d_head]; k, v [batch, kv_head, key, d_head]. Returns [batch, head, row, d_head]."""
        points = self.points[cache.layer.index] if self.wanted else None
        if points is not None:
            queries = self._tap_heads(points["q"], queries)
        mask = self._mask(cache, queries.shape[2])
        if self.softcap is None:
            out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
        else:
            out = _eager(queries, keys, values, mask, scale, self.softcap)
        if self.witness is not None:
            self.witness.called(cache.layer, queries, keys, values, out)
        if points is not None:
            for slot in self.executor.wanting(points["attn_scores"], points["attn_probs"]):
                if slot.error is None:
                    rows = self._one(slot, points, queries, keys, values, cache, scale, sinks)
                    out[slot.batch, :, slot.start : slot.stop] = rows
            out = self._tap_heads(points["z"], out)
        return out

    def _mask(self, cache: RunCache | BatchCache, n: int) -> mx.array | str | None:
        """Ours, not the one the model passes: some mlx-lm families forget their windows."""
        if isinstance(cache, RunCache):
            return cache.make_mask(n)
        key = cache.layer.window, n
        if key not in self.masks:
            self.masks[key] = cache.mask(n, cache.end - n)
        return self.masks[key]

    def _tap_heads(self, point: Point, tensor: mx.array) -> mx.array:
        if point not in self.wanted:
            return tensor
        rows = tensor.swapaxes(1, 2)
        new = self.executor.tap(point, rows)
        return tensor if new is rows else new.swapaxes(1, 2)

    def _one(
        self,
        slot: RowSpan,
        points: dict[str, Point],
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: RunCache | BatchCache,
        scale: float,
        sinks: mx.array | None,
    ) -> mx.array:
        """One sequence's attention, step by step, with its scores and probabilities tapped: [head, row, d_head]."""
        start, stop = (0, slot.stop) if slot.keys is None else slot.keys
        groups = queries.shape[1] // keys.shape[1]
        own_keys = mx.repeat(keys[slot.batch, :, start:stop], groups, axis=0)
        own_values = mx.repeat(values[slot.batch, :, start:stop], groups, axis=0)
        scores = (queries[slot.batch, :, slot.start : slot.stop] @ own_keys.swapaxes(1, 2)) * scale
        if self.softcap is not None:
            scores = mx.tanh(scores / self.softcap) * self.softcap
        hidden = _hidden(slot, stop - start, cache.layer.window)
        scores = mx.where(hidden, mx.array(-mx.inf, scores.dtype), scores).swapaxes(0, 1)
        slot.masked = hidden[:, None]
        scores = self.executor.tap_one(points["attn_scores"], slot, scores)
        if sinks is None:
            self.executor.require_keys(points["attn_scores"], slot, scores)
        probs = _softmax(scores.swapaxes(0, 1)[None], sinks)[0].astype(queries.dtype).swapaxes(0, 1)
        probs = self.executor.tap_one(points["attn_probs"], slot, probs)
        return probs.swapaxes(0, 1) @ own_values


def _hidden(slot: RowSpan, n_keys: int, window: int | None) -> mx.array:
    """Which keys each row cannot see: [row, key]. Keys are the positions 0 … n_keys − 1."""
    keys = mx.arange(n_keys)[None]
    rows = mx.arange(slot.position, slot.position + slot.n)[:, None]
    hidden = keys > rows
    return hidden if window is None else hidden | (keys <= rows - window)


def _softmax(scores: mx.array, sinks: mx.array | None) -> mx.array:
    """Over the keys, in float32; a sink takes its share and is dropped. scores [batch, head, row, key]."""
    scores = scores.astype(mx.float32)
    if sinks is None:
        return mx.softmax(scores, axis=-1)
    column = mx.broadcast_to(sinks.astype(mx.float32).reshape(1, -1, 1, 1), (*scores.shape[:3], 1))
    return mx.softmax(mx.concatenate([scores, column], axis=-1), axis=-1)[..., :-1]


def _eager(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None, scale: float, softcap: float
) -> mx.array:
    """Attention of a whole batch with a softcap. Returns [batch, head, row, d_head]."""
    n, groups = queries.shape[2], queries.shape[1] // keys.shape[1]
    keys, values = mx.repeat(keys, groups, axis=1), mx.repeat(values, groups, axis=1)
    scores = (queries @ keys.swapaxes(2, 3)) * scale
    scores = mx.tanh(scores / softcap) * softcap
    if isinstance(mask, str):
        mask = mx.arange(n)[:, None] >= mx.arange(n)[None]
    if mask is not None:
        scores = mx.where(mask, scores, mx.array(-mx.inf, scores.dtype))
    return _softmax(scores, None).astype(queries.dtype) @ values


def _capped_by(stock: Any) -> Any:
    def call(module: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if isinstance(cache, (RunCache, BatchCache)):
            return _capped(module, x, mask, cache)
        return stock.__call__(module, x, mask, cache)

    return call


def _capped(module: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
    """The call of gemma2's attention module, which has its attention written out, through ours."""
    batch, n, _ = x.shape
    queries, keys, values = (
        projection(x).reshape(batch, n, n_heads, -1).swapaxes(1, 2)
        for projection, n_heads in (
            (module.q_proj, module.n_heads),
            (module.k_proj, module.n_kv_heads),
            (module.v_proj, module.n_kv_heads),
        )
    )
    queries, keys = module.rope(queries, offset=cache.offset), module.rope(keys, offset=cache.offset)
    keys, values = cache.update_and_fetch(keys, values)
    out = cache.layer.probe(queries, keys, values, cache, module.scale)
    return module.o_proj(out.swapaxes(1, 2).reshape(batch, n, -1))


def _dispatcher(stock: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        # Scores of their own in place of a mask (latent attention's rotary part): the sites inside are not the usual ones.
        scored = isinstance(mask, mx.array) and mask.dtype != mx.bool_
        if isinstance(cache, (RunCache, BatchCache)) and not scored:
            probed: Any = cache.layer.probe
            return probed(queries, keys, values, cache, scale, sinks)
        return stock(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)

    return attention
