"""Numbers from a stranger, checked."""

from __future__ import annotations

import numpy as np

from .errors import InvalidArgument

__all__ = ["finite", "indices", "within"]

MAX_FLOAT32 = float(np.finfo(np.float32).max)


def finite(value: object, what: str) -> float:
    """A Python float that is finite in float32, in which edits are computed; raises InvalidArgument otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_FLOAT32:
        raise InvalidArgument(f"{what} must be a finite number of float32, got {value!r}")
    return float(value)


def within(value: object, low: float, high: float, what: str, *, integer: bool = False) -> None:
    """Raise InvalidArgument unless a number lies in low … high."""
    kinds = int if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "an integer" if integer else "a number"
        raise InvalidArgument(f"{what} must be {kind} in {low} … {high}, got {value!r}")


def indices(value: tuple[int, ...] | None, what: str, *, negative: bool = False) -> tuple[int, ...] | None:
    """Distinct integers, or None for "all"; raises InvalidArgument for an empty list, repeats or negatives."""
    if value is None:
        return None
    result = tuple(value)
    if not result:
        raise InvalidArgument(f"{what} is empty; leave it out to mean all, or name at least one")
    if any(isinstance(i, bool) or not hasattr(i, "__index__") for i in result):
        raise InvalidArgument(f"{what} must be integers, got {list(result)}")
    result = tuple(int(i) for i in result)
    if len(set(result)) != len(result):
        raise InvalidArgument(f"{what} names the same index twice: {list(result)}")
    if not negative and min(result) < 0:
        raise InvalidArgument(f"{what} must be 0 or more, got {min(result)}")
    return result
