"""Taps in mlx-lm's modules that carry tensors to the executor, there only for the points that the coming forward asks for.

MLX looks `__call__` up on the type, so a tapped module's class is swapped for a subclass of its own, and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import mlx.core as mx

from ..hooks.executor import Executor
from ..hooks.points import PROBE_BATCH, PROBE_LENGTHS, Point, Seen

__all__ = ["Taps"]


class _Tapped:
    """One module that is tapped now, or was."""

    def __init__(self, module: Any) -> None:
        self.module, self.own_class = module, type(module)
        self.tapped_class: type | None = None
        self.inputs: list[Point] = []
        self.outputs: list[Point] = []


class Taps:
    """The taps on one model's modules."""

    def __init__(self, model: Any, executor: Executor) -> None:
        self.model, self.executor = model, executor
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.tapped: dict[str, _Tapped] = {}
        self.attached: list[_Tapped] = []
        self.points: set[Point] = set()

    def look(self, forward: Callable[[mx.array], Any]) -> dict[tuple[str, str], Seen]:
        """What every module reads and gives in two small forwards over token ids [batch, row]; nothing is computed."""
        seen = {(path, side): Seen([], []) for path in self.modules for side in ("input", "output")}
        for length in PROBE_LENGTHS:
            for one in seen.values():
                one.calls.append(0)
                one.shapes.append(())
            own = [(module, type(module)) for module in self.modules.values()]
            self.executor.begin([], (PROBE_BATCH, length))
            for path, module in self.modules.items():
                module.__class__ = _watched(type(module), path, seen)
            try:
                forward(mx.zeros((PROBE_BATCH, length), mx.int32))
            finally:
                for module, stock in own:
                    module.__class__ = stock
        return seen

    def attach(self, points: Collection[Point]) -> None:
        """Make exactly these points reach the executor."""
        if points == self.points:
            return
        for tapped in self.attached:
            tapped.module.__class__ = tapped.own_class
            tapped.inputs, tapped.outputs = [], []
        self.points, self.attached = set(points), []
        for point in points:
            if point.side in ("input", "output"):
                self._attach_one(point)
        for tapped in self.attached:  # what the residual branch holds, then what the module reads; logits, then weights
            tapped.inputs.sort(key=lambda point: not point.in_place)
            tapped.outputs.sort(key=lambda point: point.kind == "experts")

    def _attach_one(self, point: Point) -> None:
        if point.path not in self.tapped:
            self.tapped[point.path] = _Tapped(self.modules[point.path])
        tapped = self.tapped[point.path]
        (tapped.inputs if point.side == "input" else tapped.outputs).append(point)
        if tapped.tapped_class is None:
            tapped.tapped_class = self._tapped_class(tapped)
        tapped.module.__class__ = tapped.tapped_class
        self.attached.append(tapped)

    def _tapped_class(self, tapped: _Tapped) -> type:
        stock: Any = tapped.own_class.__call__

        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            if tapped.inputs:
                first = self._tap(tapped.inputs, args[0] if args else None, None)
                args = (first, *args[1:]) if args else args
            output = stock(module, *args, **kwargs)
            if not tapped.outputs:
                return output
            if isinstance(output, tuple):
                return (self._tap(tapped.outputs, output[0], None), *output[1:])
            return self._tap(tapped.outputs, output, args[0] if args else None)

        return type(tapped.own_class.__name__, (tapped.own_class,), {"__call__": call})

    def _tap(self, found: list[Point], value: Any, linear_input: Any) -> Any:
        if not isinstance(value, mx.array) or value.ndim < 3 or value.shape[:2] != self.executor.layout:
            self.executor.fail_wanting(found, "its tensor has no rows that can be matched to tokens")
            return value
        for point in found:
            if point.kind == "experts":
                self.executor.tap(point, _dense_weights(value, self.model.args.num_experts_per_tok))
            else:
                value = self.executor.tap(point, value, linear_input=linear_input if point.linear else None)
        return value


def _watched(stock: type, path: str, seen: dict[tuple[str, str], Seen]) -> type:
    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        output = stock.__call__(module, *args, **kwargs)
        first: Any = output[0] if isinstance(output, tuple) else output
        for side, value in (("input", args[0] if args else None), ("output", first)):
            one = seen[path, side]
            one.calls[-1] += 1
            if isinstance(value, mx.array):
                one.shapes[-1] = tuple(value.shape)
        return output

    return type(stock.__name__, (stock,), {"__call__": call})


def _dense_weights(logits: mx.array, n_chosen: int) -> mx.array:
    """What mlx-lm's router makes of its logits, 0 for the experts that were not chosen."""
    chosen = mx.argpartition(logits, kth=-n_chosen, axis=-1)[..., -n_chosen:]
    weights = mx.softmax(mx.take_along_axis(logits, chosen, axis=-1), axis=-1, precise=True)
    return mx.put_along_axis(mx.zeros_like(logits), chosen, weights, axis=-1)
