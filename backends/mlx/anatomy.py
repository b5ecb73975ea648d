"""The site table of a model, derived from the one in front of us."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from ..deltas.at_work import Deltas
from ..deltas.factors import UNEMBED
from ..model.anatomy.derive import Anatomy, NotUnderstood, derive
from ..model.anatomy.numbers import head_caps, head_scales, numbers_of
from ..model.families import BODIES
from .attention import Attention
from .cache import run_caches
from .mends import ACTIVATIONS
from .trace import TOLERANCES, traced

__all__ = ["Found", "Head", "anatomy_of"]

PROBE_ROWS = 12
HEAD_ROWS = 4
"""Of them, whose logits a head is known by: a whole vocabulary each, whose product takes MLX's CPU longest."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What makes logits of final-norm rows."""

    module: Any
    """A linear module, or the embedding itself where the two are tied."""
    deltas: Deltas
    softcap: float | None = None
    scale: float = 1.0

    def __call__(self, hidden: mx.array, columns: list[int] | None = None) -> mx.array:
        """Of all tokens, or of the given ones."""
        tied = isinstance(self.module, (nn.Embedding, nn.QuantizedEmbedding))
        if columns is not None and "scales" not in self.module:  # packed weights have no rows to pick
            at = mx.array(columns)
            logits = hidden @ self.module.weight[at].T
            if "bias" in self.module:
                logits = logits + self.module.bias[at]
        else:
            logits = self.module.as_linear(hidden) if tied else self.module(hidden)
            logits = logits if columns is None else logits[..., mx.array(columns)]
        rows, own = hidden.reshape(-1, hidden.shape[-1]), logits.reshape(-1, logits.shape[-1])
        some = None if columns is None else mx.array(columns)
        logits = self.deltas.added(UNEMBED, rows, own, columns=some).reshape(logits.shape)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else mx.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True, slots=True)
class Found:
    """What one look at a model showed."""

    head: Head | None
    """Whose logits of the body's rows are the model's own; None where there is none."""
    anatomy: Anatomy | None = None
    reason: str = ""
    """Why there is no anatomy."""


def anatomy_of(attention: Attention, model: Any, body: Any, config: Any, deltas: Deltas) -> Found:
    """Look at one forward. `body` gives final-norm rows of token ids."""
    ids = mx.random.randint(0, min(config.vocab_size, 1000), (1, PROBE_ROWS), key=mx.random.key(0))
    attention.begin(set())
    own, wanted = _own(model, body, ids)
    trace = traced(model, attention, lambda x: body(x, cache=run_caches(model, attention.layers)), ids)
    n = min([PROBE_ROWS, *(layer.window for layer in attention.layers if layer.window)])  # mlx-lm forgets some windows
    head = _head_of(model, own, wanted, config, deltas)
    if head is None or not _near(trace.rows[:, :n], own[:, :n]):
        return Found(head, None, "a forward with our attention differs from one with mlx-lm's own")
    try:
        found = derive(
            trace,
            int(config.vocab_size),
            backend="mlx",
            model_type=str(config.model_type),
            numbers=numbers_of(config),
            activations=ACTIVATIONS,
        )
    except NotUnderstood as error:
        return Found(head, None, str(error))
    # Layers without a cache are not counted by those of mlx-lm's models that leave them out.
    attention.homes = {b.call.cache: i for i, b in enumerate(found.blocks) if b.call and b.call.cache is not None}
    bodies = {"torch": BODIES.get(found.family.name, "model"), **found.family.body}
    return Found(head, replace(found, family=replace(found.family, body=bodies)))


def _own(model: Any, body: Any, ids: mx.array) -> tuple[mx.array, mx.array]:
    """The model's own final-norm rows and logits, of one forward with mlx-lm's own caches, by its own attention."""
    stock, given = type(body), list[mx.array]()

    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        rows = stock.__call__(module, *args, **kwargs)
        given.append(mx.stop_gradient(rows))  # another object, as the library may write on
        return rows

    body.__class__ = type(stock.__name__, (stock,), {"__call__": call})
    try:
        logits = model(ids, cache=make_prompt_cache(model))
    finally:
        body.__class__ = stock
    return (given[0] if len(given) == 1 else body(ids, cache=make_prompt_cache(model))), logits


def _head_of(model: Any, rows: mx.array, wanted: mx.array, config: Any, deltas: Deltas) -> Head | None:
    """The head whose logits of the body's rows are the model's own, capped or scaled; None where there is none."""
    rows, wanted = rows[:, -HEAD_ROWS:], wanted[:, -HEAD_ROWS:]
    for module in _heads(model):
        try:
            raw = Head(module, deltas)(rows)
        except ValueError:  # of another width: an embedding by layer
            continue
        if raw.shape != wanted.shape:
            continue
        for cap in head_caps(config):
            if _near(mx.tanh(raw / cap) * cap, wanted):
                return Head(module, deltas, softcap=cap)
        for scale in head_scales(config):
            if _near(raw * scale, wanted):
                return Head(module, deltas, scale=scale)
    return None


def _heads(model: Any) -> list[Any]:
    """What could be the head: outside the layers, and as wide as the vocabulary or its embedding."""
    layers = {id(module) for layer in model.layers for module in layer.modules()}
    linear = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding)
    found = [m for m in model.modules() if isinstance(m, linear) and id(m) not in layers]
    return sorted(found, key=lambda m: isinstance(m, linear[2:]))  # one of its own first


def _near(a: mx.array, b: mx.array) -> bool:
    a, b, tolerance = a.astype(mx.float32), b.astype(mx.float32), TOLERANCES[b.dtype]
    return bool((mx.abs(a - b).max() <= tolerance * mx.abs(b).max()).item())
