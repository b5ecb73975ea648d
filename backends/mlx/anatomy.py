"""The site table of an architecture that no row describes, derived from the model in front of us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from ..deltas.at_work import Deltas
from ..deltas.factors import UNEMBED
from ..model.anatomy.derive import Anatomy, NotUnderstood, derive
from ..model.anatomy.numbers import head_caps, head_scales, numbers_of
from .attention import Attention
from .cache import run_caches
from .deltas import columns_of
from .mends import ACTIVATIONS
from .trace import TOLERANCES, traced

__all__ = ["Found", "Head", "anatomy_of", "head_of"]

PROBE_ROWS, HEAD_ROWS = 12, 4


@dataclass(frozen=True, slots=True)
class Found:
    """An anatomy, or why there is none."""

    anatomy: Anatomy | None
    reason: str = ""


def anatomy_of(attention: Attention, model: Any, body: Any, config: Any) -> Found:
    """Look at one forward. `body` gives final-norm rows of token ids; with mlx-lm's own caches, by its own attention."""
    ids = mx.random.randint(0, min(config.vocab_size, 1000), (1, PROBE_ROWS), key=mx.random.key(0))
    own = body(ids, cache=make_prompt_cache(model))
    attention.begin(set())
    trace = traced(model, attention, lambda x: body(x, cache=run_caches(model, attention.layers)), ids)
    n = min([PROBE_ROWS, *(layer.window for layer in attention.layers if layer.window)])  # mlx-lm forgets some windows
    if not _near(trace.rows[:, :n], own[:, :n]):
        return Found(None, "a forward with our attention differs from one with mlx-lm's own")
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
        return Found(None, str(error))
    return Found(found)


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
        some = None if columns is None else columns_of(mx.array(columns))
        logits = self.deltas.added(UNEMBED, rows, own, columns=some).reshape(logits.shape)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else mx.tanh(logits / self.softcap) * self.softcap


def head_of(model: Any, body: Any, attention: Attention, config: Any, deltas: Deltas) -> Head | None:
    """The head whose logits of the body's rows are the model's own, capped or scaled; None where there is none."""
    ids = mx.arange(1, HEAD_ROWS)[None]
    attention.begin(set())
    rows, wanted = (call(ids, cache=run_caches(model, attention.layers)) for call in (body, model))
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
