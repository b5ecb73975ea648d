"""Which sequences of an engine that runs each alone go forward in the next step, and by how many rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Turns"]


class Turns:
    """Every sequence that generates gets its one row; prompts take turns, in pieces that depend on no neighbour."""

    def __init__(self, chunk_rows: int) -> None:
        self.chunk_rows = chunk_rows
        """Rows of a prompt that are read at once; 0: all of them."""
        self._last: str = ""
        """Whose prompt was read last."""

    def next(self, left: Mapping[str, int], budget: int) -> list[tuple[str, int]]:
        """(sequence, rows) of the coming step. `left`: rows that each has to be read, in the order of admission.

        Prompts fill `budget` rows together; one at least is read, however long.
        """
        step = [(name, 1) for name, rows in left.items() if rows == 1]
        spent = 0
        for name in self._in_turn(name for name, rows in left.items() if rows > 1):
            rows = min(left[name], self.chunk_rows or left[name])
            if spent and spent + rows > budget:
                break
            step.append((name, rows))
            spent += rows
            self._last = name
        return step

    def _in_turn(self, names: Iterable[str]) -> list[str]:
        """Those after whoever was last, then the others."""
        waiting = list(names)
        after = waiting.index(self._last) + 1 if self._last in waiting else 0
        return waiting[after:] + waiting[:after]
