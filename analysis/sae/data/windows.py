"""Batches out of windows of rows: shuffled within a window, the next window fetched while this one is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition
from .batches import float_rows, require_batch_size, require_seed, take_state

if TYPE_CHECKING:
    import torch

__all__ = ["Window", "WindowedBatches"]

_CLOSED = "these batches are closed; make them anew, and load_state_dict to go on"


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Some rows, and where the next ones begin."""

    rows: NDArray[Any]
    """[row, d_in] in any float dtype; at least one."""
    following: Mapping[str, Any]
    """JSON-able: what loads the next window."""


Load = Callable[[int, Mapping[str, Any]], Window]
"""(the window's number, counted from 0 and never anew; its place) → the window. Called in one thread, never twice at once."""


class WindowedBatches:
    """Endless batches. Window after window, the rows of each in the order that seed and window number give.

    A batch may take the end of one window and the beginning of the next. Two windows are in memory at a time: the one in
    use and the one that a thread fetches. What goes wrong in that thread is raised by the `next` that needs its window.
    """

    def __init__(
        self,
        load: Load,
        start: Mapping[str, Any],
        identity: Mapping[str, Any],
        *,
        d_in: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        ahead: bool = True,
    ) -> None:
        """`ahead`: fetch the next window while one is used; else when it is needed."""
        self._ahead = ahead
        self.d_in, self.batch_size = d_in, require_batch_size(batch_size)
        self.seed, self.shuffle = require_seed(seed), bool(shuffle)
        self._load = load
        self._place: dict[str, Any] = dict(start)
        self._kind = {**identity, "batch_size": self.batch_size, "seed": self.seed, "shuffle": self.shuffle}
        self._number = 0
        self._row: int = 0
        self._window: tuple[NDArray[np.intp], Window] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="probewire-batches")
        self._coming: Future[Window] | None = None
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        if self._closed:
            raise FailedPrecondition(_CLOSED)
        before = self._number, self._place, self._row
        try:
            return self._batch()
        except BaseException:  # rows that the batch had are not lost: the next call reads their window again
            self._drop()
            self._number, self._place, self._row = before
            raise

    def _batch(self) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        missing = self.batch_size
        while missing:
            order, window = self._current()
            if self._row == len(window.rows):
                self._number, self._place, self._row, self._window = self._number + 1, dict(window.following), 0, None
                continue
            stop = min(self._row + missing, len(window.rows))
            # copied at once: the window's memory is written anew as soon as the next window is in use
            parts.append(float_rows(window.rows, order[self._row : stop]))
            missing -= stop - self._row
            self._row = stop
        if len(parts) == 1:
            return parts[0]
        torch_: Any = import_module("torch")
        return torch_.cat(parts)

    def _current(self) -> tuple[NDArray[np.intp], Window]:
        if self._window is None:
            coming, self._coming = self._coming or self._fetch(self._number, self._place), None
            try:
                window = coming.result()
            except CancelledError:
                raise FailedPrecondition(_CLOSED) from None
            self._coming = self._fetch(self._number + 1, window.following) if self._ahead else None
            order = np.arange(len(window.rows))
            if self.shuffle:
                order = np.random.default_rng([self.seed, self._number]).permutation(len(window.rows))
            self._window = (order, window)
        return self._window

    def _fetch(self, number: int, place: Mapping[str, Any]) -> Future[Window]:
        try:
            return self._thread.submit(self._load, number, place)
        except RuntimeError:  # closed by another thread meanwhile
            raise FailedPrecondition(_CLOSED) from None

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands: the window, its place, and the row in it. Loading it reads one window again."""
        return {**self._kind, "window": self._number, "row": self._row, "place": dict(self._place)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another iteration stood. Raises FailedPrecondition when it was not over the same batches."""
        number, row = take_state(state, self._kind, ("window", "row"))
        found: Any = state.get("place")
        if not isinstance(found, Mapping) or number < 0 or row < 0:
            raise FailedPrecondition("the state lacks window, row or place; give what state_dict() gave")
        place = cast("Mapping[str, Any]", found)
        self._drop()
        self._number, self._place, self._row = number, dict(place), 0
        if row:
            if row > len(self._current()[1].rows):
                raise FailedPrecondition(f"the state stands at row {row} of window {number}, which has fewer")
            self._row = row

    def _drop(self) -> None:
        """Forget the windows, once the thread is done with what it does."""
        if self._coming is not None and not self._coming.cancel():
            self._coming.exception()
        self._window, self._coming = None, None

    def close(self) -> None:
        """End the thread. Waits for what it is doing."""
        self._closed = True
        self._drop()
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
