"""One forward of an mlx-lm model as a trace: what every module read and gave, and what attention was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from ..model.anatomy.trace import Arithmetic, AttentionCall, ExpertsCall, Trace
from .attention import Attention
from .cache import Layer
from .mixtures import block_of, dense_weights, given, n_experts_of, replayed, taken, unfaithful

__all__ = ["TOLERANCES", "traced"]

TOLERANCES = {mx.float64: 1e-6, mx.float32: 2e-5, mx.float16: 2e-3, mx.bfloat16: 2e-2}
"""Relative: two orders of one sum; in float64 the library goes through float32 in places."""


def traced(model: Any, attention: Attention, forward: Callable[[mx.array], mx.array], ids: mx.array) -> Trace:
    """What one forward over token ids [batch, row] shows. The modules are as they were afterwards."""
    modules: dict[str, Any] = dict(model.named_modules())
    recorder = _Recorder(modules, (ids.shape[0], ids.shape[1]), attention, forward, ids)
    trace = recorder.trace
    mx.eval(list(trace.values.values()), [(c.q, c.k, c.v, c.out) for c in trace.calls], trace.rows)
    _note_experts(trace, modules, recorder.experts)
    return trace


@dataclass(frozen=True, slots=True, eq=False)
class _Experts:
    """One call of a mixture's experts: the rows they read, which of them, and what they gave."""

    path: str
    at: int
    read: tuple[Any, ...]
    """What the block that calls them was given."""
    rows: mx.array
    chosen: mx.array
    gave: mx.array


class _Recorder:
    """Watches every module's call by a class of its own: MLX looks `__call__` up on the type."""

    def __init__(
        self,
        modules: dict[str, Any],
        layout: tuple[int, int],
        attention: Attention,
        forward: Callable[[mx.array], mx.array],
        ids: mx.array,
    ) -> None:
        self.calling: list[tuple[str, tuple[Any, ...]]] = []
        """Paths of the modules that are being called, and what with, outermost first."""
        self.kept: dict[int, tuple[mx.array, mx.array]] = {}
        """Layer → the keys and values that went into its cache."""
        self.experts: list[_Experts] = []
        self.trace = _empty(modules, layout)
        own = [(module, type(module)) for module in modules.values()]
        attention.witness = self
        for path, module in modules.items():
            if path:
                module.__class__ = self._watched(type(module), path)
        try:
            self.trace.rows = mx.array(forward(ids))
        finally:
            attention.witness = None
            for module, stock in own:
                module.__class__ = stock

    def cached(self, layer: Layer, keys: mx.array, values: mx.array) -> None:
        """Keys and values go into a cache: [batch, kv_head, row, d_head]."""
        self.kept[layer.index] = mx.array(keys), mx.array(values)

    def called(self, layer: Layer, q: mx.array, k: mx.array, v: mx.array, out: mx.array) -> None:
        """The attention function was called; one that reads other keys than its cache got is none of ours."""
        kept = self.kept.get(layer.index)
        if kept is not None and all(
            a.shape == b.shape and mx.array_equal(a, b) for a, b in zip(kept, (k, v), strict=True)
        ):
            rows = mx.array(out.swapaxes(1, 2))
            self.trace.calls.append(
                AttentionCall(
                    self.calling[-1][0], mx.array(q), mx.array(k), mx.array(v), rows, layer.window, layer.index
                )
            )

    def _watched(self, stock: type, path: str) -> type:
        calling = self.calling

        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            read = args[0] if args else None  # as the taps have it
            if isinstance(read, mx.array):
                self._note(path, "input", read)
            calling.append((path, tuple(mx.array(one) if isinstance(one, mx.array) else one for one in args)))
            try:
                output = stock.__call__(module, *args, **kwargs)
            finally:
                calling.pop()
            gave: Any = output[0] if isinstance(output, tuple) else output
            if isinstance(gave, mx.array):
                self._note(path, "output", gave)
            if calling and not kwargs and (found := given(args, output)) is not None:
                block, read = calling[-1]
                rows, chosen = (mx.array(one) for one in found)
                if block == block_of(path):
                    self.experts.append(_Experts(path, len(self.trace.order), read, rows, chosen, mx.array(output)))
            return output

        return type(stock.__name__, (stock,), {"__call__": call})

    def _note(self, path: str, side: str, value: mx.array) -> None:
        batch, rows = self.trace.layout
        flat = value.ndim == 2 and value.shape[0] == batch * rows
        kept = mx.array(value)  # a copy: `h += x` rebinds the very object
        self.trace.note(path, side, kept.reshape(batch, rows, -1) if flat else kept, flat=flat)


def _note_experts(trace: Trace, modules: dict[str, Any], calls: list[_Experts]) -> None:
    """What the calls of experts show of mixtures whose blocks add up what those give. Of many, the first and the last are
    tried for all: each expert is a call."""
    found = list[tuple[_Experts, mx.array, float]]()
    for index, one in enumerate(calls):
        block, experts = block_of(one.path), modules[one.path]
        rows = one.rows.reshape(*trace.layout, -1) if one.rows.ndim == 2 else one.rows
        # Rows that no module gave may have been weighed before: by how much, their experts' outputs do not show.
        plain = trace.equal(rows, trace.get(block, "input")) or any(trace.places(rows, "output"))
        if not plain or not (n_experts := n_experts_of(experts)) or block.rpartition(".")[0] in trace.lists:
            continue
        call = replayed(modules[block], one.read, experts)
        try:
            dense = dense_weights(one.chosen, taken(call, one.gave), n_experts)
            tried = index in (0, len(calls) - 1)
            off = unfaithful(experts, call, one.rows, dense, one.gave) if tried else 0.0
        except (RuntimeError, TypeError, ValueError):  # a block that makes something else of them
            continue
        found.append((one, dense, off))
    faithful = all(off <= trace.numbers.tolerance for _, _, off in found)
    for one, dense, _ in found:
        shown = dense.reshape(*trace.layout, -1)
        trace.experts.append(ExpertsCall(one.path, shown.shape[-1], one.at, shown, faithful))


def _empty(modules: dict[str, Any], layout: tuple[int, int]) -> Trace:
    items = Counter(path.rpartition(".")[0] for path in modules if path.rpartition(".")[2].isdigit())
    inner = {".".join(parts[:n]) for parts in (path.split(".") for path in modules) for n in range(1, len(parts))}
    dtype = next(
        m.weight.dtype for m in modules.values() if "weight" in m and mx.issubdtype(m.weight.dtype, mx.floating)
    )
    return Trace(
        layout=layout,
        numbers=Arithmetic(lambda a, b: bool(mx.array_equal(a, b)), _distance, TOLERANCES[dtype]),
        lists=dict(items),
        linear=frozenset(p for p, m in modules.items() if isinstance(m, (nn.Linear, nn.QuantizedLinear))),
        norms=frozenset(p for p, m in modules.items() if "Norm" in type(m).__name__),
        leaves=frozenset(p for p in modules if p not in inner),
    )


def _distance(a: mx.array, b: mx.array) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return float(mx.abs(a - b).max() / mx.maximum(mx.abs(b).max(), 1e-30))
