"""Sites that are sums no module gives, which the model itself adds to a stream: what is kept for them, and put back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol

from .hooks.points import Point
from .ops import Ops

__all__ = ["Place", "Terms", "places_of"]

_STREAM = -1
"""Beside the parts' numbers: what the sum is added to."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part is, or a stream."""

    path: str
    side: str
    held: bool = False
    """What the residual branch holds of what the module reads: before edits of what the module alone reads."""


def places_of(points: Iterable[Point]) -> dict[Place, list[tuple[Point, int]]]:
    """What is to be kept for terms, by where it is; with the number of the part."""
    found = dict[Place, list[tuple[Point, int]]]()
    for point in points:
        if point.term is not None:
            stream = point.term.stream
            found.setdefault(Place(stream.path, stream.side, stream.in_place), []).append((point, _STREAM))
            for index, (path, _) in enumerate(point.term.parts):
                found.setdefault(Place(path, "output"), []).append((point, index))
    return found


class _Executor(Protocol):
    """What is asked of it here."""

    ops: Ops
    layout: tuple[int, int]
    backward: Any

    def tap(self, point: Point, value: Any) -> Any: ...

    def fail_wanting(self, points: Sequence[Point], reason: str) -> None: ...


class Terms:
    """The sums of one forward. Taps show every part as the model goes on with it, then what the model made of them."""

    def __init__(self, executor: _Executor) -> None:
        self._executor = executor
        self._kept: dict[tuple[Point, int], Any] = {}

    def clear(self) -> None:
        """Let go of what the forward made."""
        self._kept.clear()

    def keep(self, places: Iterable[tuple[Point, int]], value: Any) -> None:
        """A part's or the stream's tensor, [batch, row, …] or its rows one behind the other."""
        layout = self._executor.layout
        if value is None or value.ndim not in (2, 3):
            return
        if value.ndim == 2 and value.shape[0] == layout[0] * layout[1]:
            value = value.reshape(*layout, -1)
        for place in places:
            self._kept[place] = self._executor.ops.copy(value)  # the model may write into its own

    def put(self, point: Point, total: Any) -> Any:
        """What the model made of the sum, made anew where hooks have changed it: by the model's own operations, so that rows
        whose sum is as it was are to the bit as they were."""
        executor, term = self._executor, point.term
        assert term is not None
        parts = [self._kept.pop((point, index), None) for index in range(len(term.parts))]
        stream = self._kept.pop((point, _STREAM), None)
        shapes = {None if one is None else tuple(one.shape) for one in (*parts, stream)}
        like = len(shapes) == 1 and math.prod(getattr(total, "shape", ())) == math.prod(getattr(stream, "shape", ()))
        if stream is None or not like or tuple(stream.shape[:-1]) != executor.layout:
            executor.fail_wanting([point], "its parts did not come as they did when the model was loaded")
            return total
        weighed = [one if c == 1.0 else one * c for one, (_, c) in zip(parts, term.parts, strict=True)]
        own = reduce(add, weighed)
        own = own if term.scale == 1.0 else own * term.scale
        new = executor.tap(point, own)
        if new is own and executor.backward is None:
            return total
        made = (stream + new).reshape(total.shape)
        if point.side == "input":
            total[...] = made  # the residual branch holds it too
            return total
        return made
