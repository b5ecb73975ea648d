"""Arrays of several inputs as one, where their shapes allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...protos.errors import InvalidArgument, NotFound
from ...protos.tensors import Array
from .input_result import InputResult

__all__ = ["stack_inputs"]

MAX_SHOWN = 4


def stack_inputs(items: Sequence[InputResult], read: Callable[[InputResult], Array], call: str, name: str) -> Array:
    """[input, …] of what `read` gives of each. `call` and `name` are for messages.

    Raises InvalidArgument when inputs differ in shape, NotFound when one has nothing there.
    """
    if not items:
        raise InvalidArgument(f"{call}: the request has no input that something was asked of")
    found: list[Array] = []
    for item in items:
        try:
            found.append(read(item))
        except NotFound as error:
            raise NotFound(f"input {item.name!r}: {error.message}") from None
    if len({array.shape for array in found}) > 1:
        raise InvalidArgument(
            f"{call}: the inputs differ in shape ({_shapes(items, found)}), so they do not stack; capture one row of each "
            f'(positions=-1, or reduce="last"), take last({name!r}), or read them one by one: result.inputs[name]'
        )
    stacked = np.stack(found)
    stacked.flags.writeable = False
    return stacked


def _shapes(items: Sequence[InputResult], found: Sequence[Array]) -> str:
    """An input of each shape, the first ones."""
    by_shape: dict[tuple[int, ...], str] = {}
    for item, array in zip(items, found, strict=True):
        by_shape.setdefault(array.shape, item.name)
    shown = [f"{name!r} {list(shape)}" for shape, name in list(by_shape.items())[:MAX_SHOWN]]
    return ", ".join([*shown, "…"] if len(by_shape) > MAX_SHOWN else shown)
