"""Which sequences of an engine that runs each alone go forward in the next step, and by how many rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Turns"]


@dataclass(slots=True)
class Turns:
    """Every sequence that generates gets its one row; prompts take turns, in pieces that depend on no neighbour."""

    chunk_rows: int
    """Rows of a prompt that are read at once; 0: all of them."""

    def next(self, left: Mapping[str, int], budget: int) -> list[tuple[str, int]]:
        """(sequence, rows) of the coming step. `left`: rows that each has to be read, whoever has waited longest first.

        Prompts fill `budget` rows together; one at least is read, however long, and none overtakes another.
        """
        step: list[tuple[str, int]] = []
        spent, full = 0, False
        for name, rows in left.items():
            if rows == 1:
                step.append((name, 1))
                continue
            piece = min(rows, self.chunk_rows or rows)
            full |= bool(spent) and spent + piece > budget
            if not full:
                step.append((name, piece))
                spent += piece
        return step
