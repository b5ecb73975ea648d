"""Attention: queries look at keys up to their own position, and mix the values they find there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from ...protos.tensors import Array
from .linear import Linear, Norm
from .rope import Rope
from .tap import Tap

__all__ = ["Attention", "softcap", "visible_keys"]


def visible_keys(n: int, window: int | None) -> Array:
    """[query, key], bool: the last `window` keys (None: all keys) up to and including the query's own."""
    distance = np.arange(n)[:, None] - np.arange(n)
    return (distance >= 0) & (distance < (n if window is None else window))


def softcap(x: Array, cap: float | None) -> Array:
    """Squeezes smoothly into −cap … cap; None leaves x as it is."""
    return x if cap is None else cap * np.tanh(x / cap)


def _softmax_with_sink(scores: Array, sinks: Array | None) -> Array:
    """Over the keys; a sink is one more score a head, which takes its share and gives nothing."""
    top = scores.max(axis=-1, keepdims=True)
    if sinks is None:
        weights = np.exp(scores - top)
        return weights / weights.sum(axis=-1, keepdims=True)
    sink = sinks[:, None, None]
    top = np.maximum(top, sink)
    weights = np.exp(scores - top)
    return weights / (weights.sum(axis=-1, keepdims=True) + np.exp(sink - top))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Attention:
    """One layer's attention."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    d_head: int
    scale: float
    """Multiplies the scores; most often d_head^−½."""
    q_norm: Norm | None = None
    """Of each head's row, before the rotary embedding."""
    k_norm: Norm | None = None
    rope: Rope | None = None
    """None: the layer does not rotate."""
    cap: float | None = None
    window: int | None = None
    sinks: Array | None = None
    """[head]."""

    def __call__(self, x: Array, layer: int, tap: Tap) -> tuple[Array, Array]:
        """[pos, d_model] → the output [pos, d_model], and what the output projection read [pos, heads·d_head]."""
        q, k, v = (self._heads(project(x)) for project in (self.q, self.k, self.v))
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None:
            k = self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        q, k, v = tap(Site("q", layer), q), tap(Site("k", layer), k), tap(Site("v", layer), v)

        group = q.shape[1] // k.shape[1]  # consecutive query heads that share a key head
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = softcap(np.einsum("qhd,khd->hqk", q, k) * self.scale, self.cap)
        scores = np.where(visible_keys(len(x), self.window), scores, -np.inf)
        scores = tap(Site("attn_scores", layer), scores)
        if self.sinks is None and (left := np.isneginf(scores).all(axis=-1).any(axis=0)).any():
            raise InvalidArgument(f"attn_scores.{layer}: the row at position {int(left.argmax())} has no key left")
        probs = tap(Site("attn_probs", layer), _softmax_with_sink(scores, self.sinks))
        z = tap(Site("z", layer), np.einsum("hqk,khd->qhd", probs, v))
        flat = z.reshape(len(x), -1)
        return self.o(flat), flat

    def _heads(self, x: Array) -> Array:
        return x.reshape(len(x), -1, self.d_head)
