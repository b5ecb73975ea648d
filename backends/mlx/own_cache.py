"""One sequence's forward with mlx-lm's own caches, as its `generate` makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from numpy.typing import NDArray

from ..alone_engine import CacheCost
from .attention import Attention
from .taps import Taps

__all__ = ["OwnCache"]

_FEW, _MORE = 300, 900
"""Positions of two caches whose sizes tell what a position costs: buffers of keys grow by 256 at a time."""


class OwnCache:
    """See OwnForward."""

    def __init__(
        self, model: Any, body: Any, attention: Attention, taps: Taps, head: Callable[[mx.array], mx.array]
    ) -> None:
        """`body`: token ids to final-norm rows; `head`: these to logits."""
        self.model, self.body, self.attention, self.taps, self.head = model, body, attention, taps, head

    def new_state(self) -> list[Any]:
        """The library's caches, a layer each."""
        return make_prompt_cache(self.model)

    def rows(self, state: list[Any], tokens: NDArray[np.int64], position: int) -> tuple[mx.array, list[Any]]:
        """See OwnForward."""
        del position  # its caches know
        rows = self.body(mx.array(tokens)[None], cache=state)
        mx.eval(rows, [array for _, array in _arrays(state)])
        return rows, state

    def logits(self, rows: mx.array) -> mx.array:
        """See OwnForward."""
        return self.head(rows)

    def attach(self) -> None:
        """See OwnForward."""
        asked = self.taps.executor.asked
        self.taps.attach(asked)
        self.attention.begin(asked)

    def held(self, states: Iterable[Any]) -> int:
        """Bytes of the arrays in some caches."""
        return sum(array.nbytes for _, array in _arrays(list(states)))

    def cost(self) -> CacheCost:
        """Of one sequence, from short ones."""
        few, more = (self._size(n) for n in (_FEW, _MORE))
        position = max(-(-(more - few) // (_MORE - _FEW)), 0)
        return CacheCost(max(few - _FEW * position, 0), position)

    def _size(self, n: int) -> int:
        state = self.new_state()
        self.taps.executor.begin([], (1, n))
        self.attach()
        _, state = self.rows(state, np.ones(n, dtype=np.int64), 0)
        return self.held([state])


def _arrays(states: list[Any]) -> list[tuple[str, mx.array]]:
    """Of all that caches hold."""
    held: Any = tree_flatten([cache.state for cache in _caches(states) if not cache.empty()])
    return [(name, value) for name, value in held if isinstance(value, mx.array)]


def _caches(states: list[Any]) -> list[Any]:
    return [one for state in states for one in (_caches(state) if isinstance(state, list) else [state])]
