"""Deltas of variants on MLX: added inside linear modules, below their taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from ..deltas.at_work import Deltas
from ..deltas.factors import EMBED, UNEMBED, Factors
from ..deltas.placed import Shares
from ..deltas.weight_table import Linear, linear_of
from ..hooks.points import PROBE_BATCH, PROBE_LENGTHS, Seen

__all__ = ["MlxProducts", "take_deltas"]


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """Factors on the device."""

    a: mx.array
    b: mx.array
    bias: mx.array | None


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """What rows have of parts: see _Step."""

    rows: mx.array | None
    scale: float
    own: mx.array | None
    by_rank: mx.array | None
    weights: mx.array | None
    """[row, part] of biases, `scale` apart; None: there is one part."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """Some parts' factors side by side, for the rows of all of them."""

    rows: mx.array | None
    """None: all that there are."""
    a: mx.array
    """[d_in, all ranks]."""
    own: mx.array | None
    """[row, all ranks]: whether a product is of the row's own part; None: there is one part."""
    by_rank: mx.array | None
    """[all ranks]: strengths, where one is not 1. Not in `b`, where what overflows would reach the others: 0 · ∞ is no number."""
    b: mx.array
    """[all ranks, d_out]."""
    scale: float
    """Of all parts."""
    bias: mx.array | None
    """[d_out] or [row, d_out], `scale` apart."""


class MlxProducts:
    """See backends/deltas/placed.py."""

    def prepare(self, factors: Factors, near: mx.array) -> _Ready:
        """See Products."""
        bias = None if factors.bias is None else _like(factors.bias, near)
        made = _Ready(_like(factors.a, near), _like(factors.b, near), bias)
        mx.eval(made.a, made.b, *(() if bias is None else (bias,)))
        return made

    def device(self, near: mx.array) -> None:
        """See Products. There is one."""

    def split(self, shares: Shares, ranks: tuple[int, ...], near: mx.array) -> _Split:
        """See Products."""
        rows, scale = None if shares.rows is None else mx.array(shares.rows.astype(np.int32)), shares.scale
        if shares.own is None:
            return _Split(rows, float(shares.scales[0]), None, None, None)
        mine: Any = np.repeat(shares.own, ranks, axis=1)
        own = mx.array(mine)
        if scale is not None:
            return _Split(rows, scale, own, None, _like(shares.own, near))
        return _Split(
            rows, 1.0, own, _like(np.repeat(shares.scales, ranks), near), _like(shares.own * shares.scales, near)
        )

    def step(self, factors: SequenceOf[_Ready], split: _Split) -> _Step:
        """See Products."""
        first = factors[0]
        if split.weights is None:
            return _Step(split.rows, first.a, None, None, first.b, split.scale, first.bias)
        bias: mx.array | None = None
        if any(one.bias is not None for one in factors):
            none = mx.zeros_like(first.b[0])
            bias = split.weights @ mx.stack([none if one.bias is None else one.bias for one in factors])
        a, b = mx.concatenate([one.a for one in factors], axis=1), mx.concatenate([one.b for one in factors])
        mx.eval(a, b, *(() if bias is None else (bias,)))
        return _Step(split.rows, a, split.own, split.by_rank, b, split.scale, bias)

    def beside(self, steps: SequenceOf[_Step]) -> _Step:
        """See Products."""
        own = [one.own for one in steps if one.own is not None]
        by_rank: mx.array | None = None
        if any(one.by_rank is not None for one in steps):
            by_rank = mx.concatenate([mx.ones_like(one.a[0]) if one.by_rank is None else one.by_rank for one in steps])
        a = mx.concatenate([one.a for one in steps], axis=1)
        side = replace(steps[0], a=a, own=mx.concatenate(own, axis=1) if own else None, by_rank=by_rank)
        mx.eval(*(one for one in (side.a, side.own, side.by_rank) if one is not None))
        return side

    def read(self, x: mx.array, step: _Step) -> mx.array:
        """See Products."""
        x = x if step.rows is None else x[step.rows]
        h = x.astype(step.a.dtype) @ step.a if mx.issubdtype(x.dtype, mx.floating) else step.a[x]
        h = h if step.by_rank is None else h * step.by_rank
        return h if step.own is None else mx.where(step.own, h, mx.zeros_like(h))

    def write(self, y: mx.array, h: mx.array, step: _Step) -> mx.array:
        """See Products."""
        change = h @ step.b if step.bias is None else h @ step.b + step.bias
        change = change if step.scale == 1.0 else change * step.scale
        own = y if step.rows is None else y[step.rows]
        new = (own + change).astype(y.dtype)
        if step.rows is None:
            return new
        made = mx.array(y)
        made[step.rows] = new
        return made

    def columns(self, step: _Step, at: mx.array) -> _Step:
        """See Products."""
        return replace(step, b=step.b[:, at], bias=None if step.bias is None else step.bias[..., at])


def _like(array: NDArray[Any], near: mx.array) -> mx.array:
    """A CPU multiplies few rows faster in 32 bits than in 16."""
    wide = near.dtype.size == 2 and mx.default_device().type == mx.DeviceType.cpu
    return mx.array(np.ascontiguousarray(array)).astype(mx.float32 if wide else near.dtype)


def take_deltas(model: Any, head: Any, seen: Mapping[tuple[str, str], Seen], deltas: Deltas) -> dict[str, Linear]:
    """See Backend.take_deltas. `head`: the module that makes logits, to whose rows our own `Head` adds.

    MLX looks `__call__` up on the type, so each module gets a subclass of its own; taps put theirs over it.
    """
    found: dict[str, Linear] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.QuantizedEmbedding)):
            scale = (
                _embedding_scale(module) if EMBED not in found and _reads_tokens(seen.get((path, "input"))) else None
            )
            if scale is not None:
                d_in, d_out = module.weight.shape[0], seen[path, "output"].shapes[0][-1]
                found[EMBED] = Linear(path, d_in, d_out, scale=scale)
        elif module is not head and isinstance(module, (nn.Linear, nn.QuantizedLinear)):
            one = linear_of(path, seen, bias="bias" in module)
            found.update({} if one is None else {path: one})
    modules = dict(model.named_modules())
    for name, linear in found.items():
        module = modules[linear.path]
        module.__class__ = _changed(type(module), name, deltas)
    paths = {id(module): path for path, module in modules.items()}
    found[UNEMBED] = Linear(paths[id(head)], _read_width(head), head.weight.shape[0], "bias" in head)
    return found


def _reads_tokens(seen: Seen | None) -> bool:
    """Whether an embedding is read once, by token: that of positions sees no batch."""
    return seen is not None and seen.calls == [1, 1] and seen.shapes == [(PROBE_BATCH, n) for n in PROBE_LENGTHS]


def _read_width(module: Any) -> int:
    """How wide the rows are that a head reads, packed or not."""
    if "scales" in module:
        return int(module.scales.shape[-1]) * int(module.group_size)
    return int(module.weight.shape[-1])


def _changed(stock: type, name: str, deltas: Deltas) -> type:
    def call(module: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        y: mx.array = stock.__call__(module, x, *args, **kwargs)
        if not deltas.active:
            return y
        rows = x.reshape(-1) if name == EMBED else x.reshape(-1, x.shape[-1])
        return deltas.added(name, rows, y.reshape(-1, y.shape[-1]), source=x).reshape(y.shape)

    return type(stock.__name__, (stock,), {"__call__": call})


def _embedding_scale(module: Any) -> float | None:
    """How many times its weight's rows an embedding gives; None where it gives something else."""
    if "weight" not in module or module.weight.ndim != 2:
        return None
    given = module(mx.arange(min(8, module.weight.shape[0])))
    rows = module.weight[: len(given)]
    if "scales" in module:
        biases = module.biases[: len(given)] if "biases" in module else None
        how = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        rows = mx.dequantize(rows, module.scales[: len(given)], biases, **how)
    rows = rows.astype(mx.float32)
    wide = given.astype(mx.float32)
    if wide.shape != rows.shape:
        return None
    scale = float((wide * rows).sum() / mx.maximum((rows * rows).sum(), 1e-30))
    return scale if bool(mx.allclose(wide, rows * scale, rtol=1e-2, atol=1e-12)) else None
