"""Deltas of variants on MLX: added inside linear modules, below their taps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from ..deltas.at_work import Deltas
from ..deltas.factors import EMBED, UNEMBED, Factors
from ..deltas.weight_table import Linear, linear_of
from ..hooks.points import PROBE_BATCH, PROBE_LENGTHS, Seen

__all__ = ["MlxProducts", "columns_of", "take_deltas"]

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """Factors on the device, in the model's dtype."""

    a: mx.array
    b: mx.array
    bias: mx.array | None


@dataclass(frozen=True, slots=True, eq=False)
class _Together:
    """Several parts' factors side by side, for the rows of all of them."""

    a: mx.array
    """[d_in, all ranks]."""
    b: mx.array
    """[all ranks, d_out]."""
    scales: mx.array | None
    """[all ranks], of its part each; None: 1. Not in `b`, where what overflows would reach the others: 0 · ∞ is no number."""
    own: mx.array
    """[row, all ranks]: whether a product is of the row's own part."""
    at: mx.array | None
    """The rows; None: all that there are."""
    biases: tuple[mx.array, mx.array] | None
    """[row, part] scales and [part, d_out]."""


class MlxProducts:
    """See backends/deltas/at_work.py."""

    def prepare(self, factors: Factors, near: mx.array) -> _Ready:
        """See Products."""
        made = _Ready(
            _like(factors.a, near), _like(factors.b, near), None if factors.bias is None else _like(factors.bias, near)
        )
        mx.eval(made.a, made.b, *(() if made.bias is None else (made.bias,)))
        return made

    def one(self, x: mx.array, y: mx.array, factors: _Ready, scale: float, rows: Rows | None) -> mx.array:
        """See Products."""
        at = None if rows is None else mx.array(rows.astype(np.int32))
        change = _read(x if at is None else x[at], factors.a) @ factors.b
        change = change if factors.bias is None else change + factors.bias
        change = change if scale == 1.0 else (change * scale).astype(y.dtype)
        return y + change if at is None else y.at[at].add(change)

    def several(self, x: mx.array, y: mx.array, together: _Together) -> mx.array:
        """See Products."""
        at = together.at
        h = _read(x if at is None else x[at], together.a)
        h = h if together.scales is None else h * together.scales
        change = mx.where(together.own, h, mx.zeros_like(h)) @ together.b
        if together.biases is not None:
            change = change + together.biases[0] @ together.biases[1]
        return y + change if at is None else y.at[at].add(change)

    def together(self, parts: SequenceOf[tuple[_Ready, float, Rows]], near: mx.array) -> _Together:
        """See Products."""
        rows = np.unique(np.concatenate([own for _, _, own in parts]))
        ranks = [factors.a.shape[1] for factors, _, _ in parts]
        mine = np.zeros((len(rows), sum(ranks)), dtype=bool)
        scales = np.zeros((len(rows), len(parts)), dtype=np.float32)
        by_rank = np.repeat(np.array([scale for _, scale, _ in parts], dtype=np.float32), ranks)
        start = 0
        for index, ((_, scale, own), rank) in enumerate(zip(parts, ranks, strict=True)):
            at = np.searchsorted(rows, own)
            mine[at, start : start + rank] = True
            scales[at, index] = scale
            start += rank
        none = mx.zeros(near.shape[1], dtype=near.dtype)
        biases = mx.stack([none if factors.bias is None else factors.bias for factors, _, _ in parts])
        some = any(factors.bias is not None for factors, _, _ in parts)
        made = _Together(
            mx.concatenate([factors.a for factors, _, _ in parts], axis=1),
            mx.concatenate([factors.b for factors, _, _ in parts]),
            None if all(scale == 1.0 for _, scale, _ in parts) else _like(by_rank, near),
            mx.array(mine),
            None if len(rows) == len(near) else mx.array(rows.astype(np.int32)),
            (_like(scales, near), biases) if some else None,
        )
        mx.eval(made.a, made.b, made.own)
        return made


def _like(array: NDArray[Any], near: mx.array) -> mx.array:
    return mx.array(np.ascontiguousarray(array)).astype(near.dtype)


def _read(x: mx.array, a: mx.array) -> mx.array:
    """x·A; of token ids, the rows of A that they choose."""
    return x @ a if mx.issubdtype(x.dtype, mx.floating) else a[x]


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
        return deltas.added(name, rows, y.reshape(-1, y.shape[-1])).reshape(y.shape)

    return type(stock.__name__, (stock,), {"__call__": call})


def _embedding_scale(module: Any) -> float | None:
    """How many times its weight's rows an embedding gives; None where it gives something else."""
    if "weight" not in module or module.weight.ndim != 2:
        return None
    given = module(mx.arange(min(8, module.weight.shape[0])))
    if "scales" in module:  # packed rows have no other reading than this one
        return 1.0
    rows = module.weight[: len(given)].astype(mx.float32)
    wide = given.astype(mx.float32)
    if wide.shape != rows.shape:
        return None
    scale = float((wide * rows).sum() / mx.maximum((rows * rows).sum(), 1e-30))
    return scale if bool(mx.allclose(wide, rows * scale, rtol=1e-2, atol=1e-12)) else None


def columns_of(at: mx.array) -> Callable[[_Ready], _Ready]:
    """The factors of some of the columns of what a module gives."""
    return lambda factors: _Ready(factors.a, factors.b[:, at], None if factors.bias is None else factors.bias[at])
