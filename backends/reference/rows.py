"""Which rows a hook applies to: the positions it chooses, and the condition that it may set on top."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.spec import Condition, Where
from ...protos.tensors import Array

__all__ = ["chosen_positions", "holds"]

_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}


def chosen_positions(where: Where, tokens: Sequence[int], prompt_length: int) -> list[int]:
    """Absolute positions that pass every filter but the condition, in the order that `where` names them.

    Raises InvalidArgument for a position that does not exist.
    """
    n = len(tokens)
    if where.positions is not None:
        named = [_absolute(p, prompt_length) for p in where.positions]
        if outside := [p for p in named if not 0 <= p < n]:
            raise InvalidArgument(f"positions {outside} are outside 0 … {n - 1}")
    elif where.spans is not None:
        named = list[int]()
        for span in where.spans:
            stop = n if span.stop is None else _absolute(span.stop, prompt_length)
            named += range(max(_absolute(span.start, prompt_length), 0), min(stop, n))
    else:
        named = list(range(n))
    latched = where.when is not None and where.when.latched
    phases = {"all": range(n), "prompt": range(prompt_length), "generated": range(prompt_length, n)}
    phase = phases["generated" if latched else where.phase]
    return [p for p in dict.fromkeys(named) if p in phase and (where.token_ids is None or tokens[p] in where.token_ids)]


def _absolute(position: int, prompt_length: int) -> int:
    return position + prompt_length if position < 0 else position


def holds(when: Condition, value: Array, prompt_length: int) -> Array:
    """[pos], bool: where the condition is true of a site's value [pos, (head,) width].

    Latched, the prompt's last row or the mean over its rows decides for every row alike.
    """
    if (value.ndim == 3) != (when.head is not None):
        need = "needs a head" if value.ndim == 3 else "has no heads"
        raise InvalidArgument(f"the condition's site {need}")
    if when.head is not None and when.head >= value.shape[1]:
        raise InvalidArgument(f"the condition's head {when.head} is outside 0 … {value.shape[1] - 1}")
    rows = value if when.head is None else value[:, when.head]
    width = rows.shape[-1]
    if when.unit is not None and when.unit >= width:
        raise InvalidArgument(f"the condition's unit {when.unit} is outside 0 … {width - 1}")
    if when.direction is not None and when.direction.shape != (width,):
        raise InvalidArgument(f"the condition's direction is {list(when.direction.shape)}, its site is {width} wide")
    direction = np.eye(width)[when.unit or 0] if when.direction is None else when.direction.floats()
    coordinate = rows @ direction.astype(rows.dtype)
    if when.normalise:
        lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(direction)
        coordinate = np.divide(coordinate, lengths, out=np.zeros_like(coordinate), where=lengths > 0)
    prompt = coordinate[:prompt_length]
    if when.latch == "last":
        coordinate = np.broadcast_to(prompt[-1], coordinate.shape)
    elif when.latch == "mean":
        coordinate = np.broadcast_to(prompt.mean(), coordinate.shape)
    return _OPS[when.op](coordinate, when.threshold)
