"""A stream that is one answer: its items are heard as they come, and make up a whole at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Gathered"]

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Gathered(Generic[S, T]):
    """A call that streams, as an operation with one answer."""

    stream: S
    hear: Callable[[Any], object]
    whole: Callable[[], T]
