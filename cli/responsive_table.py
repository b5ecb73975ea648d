"""Tables that fit: names are cut where the terminal is narrow, then the columns that matter least are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "ResponsiveTable"]

GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column and its cells, from top to bottom."""

    name: str
    cells: Sequence[Text]
    rank: int = 0
    """Columns of a higher rank go first; 0: never."""
    least: int = 0
    """Columns that a cell may be cut down to; 0: never cut."""
    right: bool = False

    @property
    def width(self) -> int:
        """Of everything."""
        return max(cell_len(self.name), *(cell_len(cell.plain) for cell in self.cells), 0)

    @property
    def least_width(self) -> int:
        """That it cannot do without."""
        return min(self.width, max(self.least, cell_len(self.name))) if self.least else self.width


class ResponsiveTable:
    """A table of columns, as many as there is room for."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        columns = list(self._columns)
        while _least_width(columns) > options.max_width and any(column.rank for column in columns):
            columns.remove(max(columns, key=lambda column: column.rank))
        yield _table(columns, options.max_width - _least_width(columns))


def _least_width(columns: Sequence[Column]) -> int:
    return sum(column.least_width for column in columns) + GAP * (len(columns) - 1)


def _table(columns: Sequence[Column], spare: int) -> Table:
    """`spare` columns of the terminal go to those that were cut, from left to right."""
    table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, GAP, 0, 0))
    for column in columns:
        more = min(column.width - column.least_width, max(0, spare))
        spare -= more
        justify = "right" if column.right else "left"
        table.add_column(Text(column.name), width=column.least_width + more, justify=justify, no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
