"""Taps in mlx-lm's modules that carry tensors to the executor, there only for the points that the coming forward asks for.

MLX looks `__call__` up on the type, so a tapped module's class is swapped for a subclass of its own, and put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import mlx.core as mx

from ..hooks.executor import Executor
from ..hooks.points import PROBE_BATCH, PROBE_LENGTHS, Point, Seen
from ..terms import Place, places_of
from .mixtures import block_of, dense_weights, given, n_experts_of, replayed, taken

__all__ = ["Taps"]


class _Tapped:
    """One module that is tapped now, or was."""

    def __init__(self, module: Any) -> None:
        self.module, self.own_class = module, type(module)
        self.tapped_class: type | None = None
        self.inputs: list[Point] = []
        self.outputs: list[Point] = []
        self.terms: list[Point] = []
        """Sums that make what it reads or gives."""
        self.kept: dict[Place, list[tuple[Point, int]]] = {}
        """What of it such sums want."""
        self.weights: list[Point] = []
        """Of experts: by how much the block that calls them takes what they give."""
        self.experts: _Tapped | None = None
        """Of the block that calls such experts."""
        self.called: tuple[Any, ...] = ()
        """What with, while the block of such experts is under way."""
        self.gave: Any = None
        """And the output."""

    def forget(self) -> None:
        """Do nothing from now on."""
        self.module.__class__ = self.own_class
        self.inputs, self.outputs, self.weights, self.terms, self.kept, self.experts = [], [], [], [], {}, None


class Taps:
    """The taps on one model's modules."""

    def __init__(self, model: Any, executor: Executor) -> None:
        self.model, self.executor = model, executor
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.tapped: dict[str, _Tapped] = {}
        self.attached: list[_Tapped] = []
        self.points: set[Point] = set()
        self._block: list[_Tapped] | None = None
        """What was tapped so far in the block under way whose experts' weights are asked for."""
        self._again = False
        """That block is called once more: what is tapped in it gives what it gave."""

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
            tapped.forget()
        self.points, self.attached = set(points), []
        for point in points:
            if point.side in ("input", "output", "weights"):
                self._attach_one(point)
        for place, found in places_of(self.points).items():
            self._tapped(place.path).kept[place] = found

    def _attach_one(self, point: Point) -> None:
        tapped = self._tapped(point.path)
        if point.term is not None:
            tapped.terms.append(point)
            return
        {"input": tapped.inputs, "output": tapped.outputs, "weights": tapped.weights}[point.side].append(point)
        if point.side == "weights":
            self._tapped(block_of(point.path)).experts = tapped

    def _tapped(self, path: str) -> _Tapped:
        if path not in self.tapped:
            self.tapped[path] = _Tapped(self.modules[path])
        tapped = self.tapped[path]
        if tapped.tapped_class is None:
            tapped.tapped_class = self._tapped_class(tapped)
        tapped.module.__class__ = tapped.tapped_class
        self.attached.append(tapped)
        return tapped

    def _tapped_class(self, tapped: _Tapped) -> type:
        stock: Any = tapped.own_class.__call__

        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            if self._again:
                return tapped.gave
            if tapped.inputs or tapped.terms or tapped.kept:
                first = self._enter(tapped, args[0] if args else None)
                args = (first, *args[1:]) if args else args
            if tapped.experts is not None:
                self._block = []
            if self._block is not None:
                tapped.called = tuple(_kept(one) for one in args)
            output = stock(module, *args, **kwargs)
            if tapped.experts is not None:
                self._tap_weights(tapped, tapped.experts)
                self._let_go()
                tapped.called = ()
            if isinstance(output, tuple):
                output = (self._leave(tapped, output[0], None), *output[1:])
            else:
                output = self._leave(tapped, output, args[0] if args else None)
            if self._block is not None:
                tapped.gave = output
                self._block.append(tapped)
            return output

        return type(tapped.own_class.__name__, (tapped.own_class,), {"__call__": call})

    def _enter(self, tapped: _Tapped, value: Any) -> Any:
        """What a module reads: what a stream is made of, what the residual branch holds, then what the module alone reads."""
        value = self._put(tapped, "input", value)
        for held in (True, False):
            if found := [point for point in tapped.inputs if point.in_place is held]:
                value = self._tap(found, value, None)
            self._keep(tapped, "input", value, held=held)
        return value

    def _leave(self, tapped: _Tapped, value: Any, linear_input: Any) -> Any:
        value = self._put(tapped, "output", value)
        value = self._tap(tapped.outputs, value, linear_input) if tapped.outputs else value
        self._keep(tapped, "output", value)
        return value

    def _put(self, tapped: _Tapped, side: str, value: Any) -> Any:
        for point in tapped.terms:
            value = self.executor.terms.put(point, value) if point.side == side else value
        return value

    def _keep(self, tapped: _Tapped, side: str, value: Any, *, held: bool = False) -> None:
        for place, found in tapped.kept.items():
            if place.side == side and place.held is held:
                self.executor.terms.keep(found, value if isinstance(value, mx.array) else None)

    def _tap_weights(self, block: _Tapped, experts: _Tapped) -> None:
        """The weights of the experts that a block has just called, which are only read."""
        found = given(experts.called, experts.gave)
        if found is None:
            self.executor.fail_wanting(experts.weights, "its experts were called in another way than at load")
            return
        _, chosen = found
        tapped_class, block.module.__class__, self._again = block.module.__class__, block.own_class, True
        try:
            weights = taken(replayed(block.module, block.called, experts.module), experts.gave)
        finally:
            block.module.__class__, self._again = tapped_class, False
        self._tap(experts.weights, dense_weights(chosen, weights, n_experts_of(experts.module)), None)

    def _let_go(self) -> None:
        for tapped in self._block or ():
            tapped.called, tapped.gave = (), None
        self._block = None

    def _tap(self, found: list[Point], value: Any, linear_input: Any) -> Any:
        flat = found[0].flat and isinstance(value, mx.array) and value.ndim == 2
        if flat and len(value) == math.prod(self.executor.layout):
            read = None if linear_input is None else linear_input.reshape(*self.executor.layout, -1)
            rows = value.reshape(*self.executor.layout, -1)
            new = self._tap_rows(found, rows, read)
            return value if new is rows else new.reshape(value.shape)
        return self._tap_rows(found, value, linear_input)

    def _tap_rows(self, found: list[Point], value: Any, linear_input: Any) -> Any:
        if not isinstance(value, mx.array) or value.ndim < 3 or value.shape[:2] != self.executor.layout:
            self.executor.fail_wanting(found, "its tensor has no rows that can be matched to tokens")
            return value
        for point in found:
            value = self.executor.tap(point, value, linear_input=linear_input if point.linear else None)
        return value


def _kept(value: Any) -> Any:
    """Of a tensor that the library may go on writing to, another object."""
    return mx.stop_gradient(value) if isinstance(value, mx.array) else value


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
