"""Module hooks that carry tensors to the executor, attached only for the points that the coming forward asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.utils.generic import ModelOutput

from ..hooks.executor import Executor
from ..hooks.points import PROBE_BATCH, PROBE_LENGTHS, Point, Seen
from ..terms import Place, places_of
from .mixtures import Products, dense_weights, given, n_experts_of

__all__ = ["Taps", "first_of"]


class Taps:
    """The hooks on one model's modules."""

    def __init__(self, model: nn.Module, executor: Executor) -> None:
        self.model, self.executor = model, executor
        self.modules = dict(model.named_modules())
        self.points: set[Point] = set()
        self.handles: list[RemovableHandle | _Within] = []

    def look(self, forward: Callable[[torch.Tensor], Any], device: torch.device) -> dict[tuple[str, str], Seen]:
        """What every module reads and gives in two small forwards over token ids [batch, row]."""
        seen = {(path, side): Seen([], []) for path in self.modules for side in ("input", "output")}
        for length in PROBE_LENGTHS:
            for one in seen.values():
                one.calls.append(0)
                one.shapes.append(())
            given: list[tuple[str, torch.Tensor, int]] = []
            handles = [self._watch(path, module, seen, given) for path, module in self.modules.items()]
            self.executor.begin([], (PROBE_BATCH, length))
            try:
                with torch.no_grad():  # not in inference mode, where tensors do not count their changes
                    forward(torch.zeros(PROBE_BATCH, length, dtype=torch.long, device=device))
            finally:
                for handle in handles:
                    handle.remove()
            for path, tensor, version in given:
                seen[path, "output"].changes |= tensor._version != version
        return seen

    def _watch(
        self,
        path: str,
        module: nn.Module,
        seen: dict[tuple[str, str], Seen],
        given: list[tuple[str, torch.Tensor, int]],
    ) -> RemovableHandle:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read = args[0] if args else kwargs.get("hidden_states")
            for side, value in (("input", read), ("output", first_of(output))):
                one = seen[path, side]
                one.calls[-1] += 1
                if isinstance(value, torch.Tensor):
                    one.shapes[-1] = tuple(value.shape)
                    if side == "output":
                        given.append((path, value, value._version))

        return module.register_forward_hook(note, with_kwargs=True)

    def attach(self, points: Collection[Point]) -> None:
        """Make exactly these points reach the executor."""
        if points == self.points:
            return
        wanted: dict[tuple[bool, str, str], list[Point]] = {}
        terms = [point for point in points if point.term is not None]
        for point in points:
            if point.term is None and point.side in ("input", "output", "product", "weights"):
                wanted.setdefault((not point.in_place, point.path, point.side), []).append(point)
        for handle in self.handles:
            handle.remove()
        self.points = set(points)
        # What a stream is made of, what the residual branch holds, then what a module reads; hooks act as they were put.
        held, read = ([(key, found) for key, found in wanted.items() if key[0] is last] for last in (False, True))
        self.handles = [self._put(point) for point in terms]
        self.handles += [self._hook(path, side, found) for (_, path, side), found in held]
        kept = places_of(terms)
        self.handles += [self._keep(place, found) for place, found in kept.items() if place.held]
        self.handles += [self._hook(path, side, found) for (_, path, side), found in read]
        self.handles += [self._keep(place, found) for place, found in kept.items() if not place.held]

    def _hook(self, path: str, side: str, found: list[Point]) -> RemovableHandle | _Within:
        module = self.modules[path]
        if side == "weights":
            return module.register_forward_pre_hook(partial(self._tap_weights, found[0]), with_kwargs=True)
        if side == "product":
            return _Within(module, lambda value: self._tap(found, value, None))
        return self._at(path, side, partial(self._tap, found))

    def _put(self, point: Point) -> RemovableHandle:
        return self._at(point.path, point.side, lambda value, _: self.executor.terms.put(point, value))

    def _keep(self, place: Place, found: list[tuple[Point, int]]) -> RemovableHandle:
        def keep(value: Any, _: Any) -> Any:
            self.executor.terms.keep(found, value if isinstance(value, torch.Tensor) else None)
            return value

        return self._at(place.path, place.side, keep)

    def _at(self, path: str, side: str, do: Callable[[Any, Any], Any]) -> RemovableHandle:
        """`do`: what a module reads or gives, and what it reads → what to go on with."""
        module = self.modules[path]

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (do(args[0], None), *args[1:]), kwargs
            value = do(kwargs.get("hidden_states"), None)
            return args, {**kwargs, "hidden_states": value} if "hidden_states" in kwargs else kwargs

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return _with_first(output, do(first_of(output), args[0] if args else None))

        if side == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def _tap_weights(self, point: Point, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The dense weights that experts are called with, which are only read."""
        found = given(args, kwargs)
        dense = None if found is None else dense_weights(*found, n_experts_of(module))
        self._tap([point], dense, None)

    def _tap(self, found: list[Point], value: Any, linear_input: Any) -> Any:
        if found[0].flat and isinstance(value, torch.Tensor) and len(value) == math.prod(self.executor.layout):
            rows = value.unflatten(0, self.executor.layout)
            read = None if linear_input is None else linear_input.reshape(*self.executor.layout, -1)
            new = self._tap_rows(found, rows, read)
            return value if new is rows else new.flatten(0, 1)
        return self._tap_rows(found, value, linear_input)

    def _tap_rows(self, found: list[Point], value: Any, linear_input: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim < 3 or tuple(value.shape[:2]) != self.executor.layout:
            self.executor.fail_wanting(found, "its tensor has no rows that can be matched to tokens")
            return value
        for point in found:
            value = self.executor.tap(point, value, linear_input=linear_input if point.linear else None)
        return value


class _Within:
    """A hook on the linear product inside a module, by the module's own two: as one that can be removed."""

    def __init__(self, module: nn.Module, tap: Callable[[Any], Any]) -> None:
        self._tap, self._mode = tap, None
        self._handles = (
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave, always_call=True),
        )

    def _enter(self, *_: Any) -> None:
        self._mode = Products(self._tap)
        self._mode.__enter__()

    def _leave(self, *_: Any) -> None:
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)

    def remove(self) -> None:
        """As of any hook."""
        for handle in self._handles:
            handle.remove()


def first_of(output: Any) -> Any:
    """What a module gives, or the first of several."""
    return output[0] if isinstance(output, (tuple, ModelOutput)) and len(output) else output


def _with_first(output: Any, new: Any) -> Any:
    """The output with its first tensor replaced."""
    if isinstance(output, ModelOutput):
        output[next(iter(output))] = new
        return output
    return (new, *output[1:]) if isinstance(output, tuple) else new
