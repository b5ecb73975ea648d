"""Tokens with numbers beneath them, like the glosses between the lines of an old book; wraps at the terminal's width."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

__all__ = ["MAX_WORD", "TokenTable", "bar", "clipped", "number", "shown_token", "visible"]

MAX_WORD = 9
BARS = "▁▂▃▄▅▆▇█"
_PICTURES = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: "␡"}
    | dict.fromkeys(range(128, 160), "�")
)
MISSING = "–"
"""Stands where the server sent no number."""


@dataclass(slots=True)
class _Cell:
    token: str
    lines: list[str] = field(default_factory=list[str])
    style: str = "bold"


class TokenTable:
    """Fills a block of tokens from left to right; a full block stays on the screen and the next begins.

    With a `status` line beneath the block it is used from two threads.
    """

    def __init__(
        self, console: Console, marks: list[str], widths: list[int], status: Callable[[], Text] | None = None
    ) -> None:
        """`marks` label the lines beneath the tokens; `widths` is the room each line's numbers need."""
        self._console, self._marks, self._status = console, marks, status
        self._lock = threading.RLock()
        self._margin = max(map(len, marks), default=0) + 1
        self._least = max(widths, default=1)
        self._cells: list[_Cell] = []
        self._live: Live | None = None

    def add(self, token: str) -> None:
        """A token; its numbers are not known yet."""
        self._put(_Cell(token, [MISSING] * len(self._marks)))

    def note(self, text: str) -> None:
        """Something between two tokens, without numbers."""
        self._put(_Cell(text, [""] * len(self._marks), "yellow"))

    def _put(self, cell: _Cell) -> None:
        with self._lock:
            if self._cells and self._margin + sum(map(self._width, [*self._cells, cell])) > self._console.width:
                self.flush()
            self._cells.append(cell)
            self._draw()

    def fill(self, line: int, text: str) -> None:
        """A number of the last token."""
        with self._lock:
            if self._cells:
                self._cells[-1].lines[line] = text
                self._draw()

    def flush(self) -> None:
        """End the block."""
        with self._lock:
            if self._live is not None:
                self._live.update(self._block(), refresh=True)
                self._live.stop()
                self._live = None
            elif self._cells and not self._console.is_terminal:
                self._console.print(self._block())
            self._cells = []

    def redraw(self) -> None:
        """Show the status as it is now."""
        with self._lock:
            if self._live is not None:
                self._draw()

    def _draw(self) -> None:
        if not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        block: RenderableType = self._block()
        self._live.update(block if self._status is None else Group(block, self._status()), refresh=True)

    def _width(self, cell: _Cell) -> int:
        return max(cell_len(cell.token), self._least) + 2

    def _block(self) -> Text:
        tokens = self._row([Text(cell.token, style=cell.style) for cell in self._cells])
        lines = [Text(" " * self._margin).append_text(tokens)]
        for index, mark in enumerate(self._marks):
            row = self._row([Text(cell.lines[index]) for cell in self._cells])
            lines.append(Text(mark.ljust(self._margin), style="dim").append_text(row))
        return Text("\n", no_wrap=True).join([*lines, Text()])

    def _row(self, texts: list[Text]) -> Text:
        row = Text()
        for text, cell in zip(texts, self._cells, strict=True):
            row.append_text(text).append(" " * (self._width(cell) - cell_len(text.plain)))
        row.rstrip()
        return row


def visible(text: str) -> str:
    """Control characters as pictures (␛, or � where there is none), so that no model moves the cursor; tabs and line
    ends stay.
    """
    return text.translate(_PICTURES)


def shown_token(text: str, *, first: bool) -> str:
    """A token in a cell: no leading space, `~` where it goes on with the word before, line ends visible."""
    if not text:
        return "·"
    text = visible(text).replace("\n", "⏎").replace("\t", "⇥")
    if text.startswith(" "):
        return text[1:] or "␣"
    return f"~{text}" if text[0].isalnum() and not first else text


def clipped(word: str) -> str:
    """At most MAX_WORD columns."""
    return word if cell_len(word) <= MAX_WORD else set_cell_size(word, MAX_WORD - 1) + "…"


def number(value: float) -> str:
    """At most seven characters."""
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.0e}"
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def bar(value: float, largest: float) -> str:
    """One block, as high as `value` is beside the largest so far."""
    share = min(1.0, abs(value) / largest) if largest else 0.0
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]
