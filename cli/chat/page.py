"""The text of a reply as it grows: as it comes, or above a line of status that stays beneath it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..token_table import visible

__all__ = ["Page", "PlainPage", "StatusPage"]

MARK_STYLE = "yellow"
TAB = "    "


class Page(Protocol):
    """Where the text of a reply goes."""

    def add(self, text: str) -> None:
        """More of it."""
        ...

    def mark(self, text: str) -> None:
        """A note between two tokens, which is not the model's."""
        ...

    def end(self) -> None:
        """There is no more."""
        ...


class PlainPage:
    """Prints what comes; the terminal breaks the lines, and there may be no terminal."""

    def __init__(self, console: Console, head: Text) -> None:
        self._console = console
        console.print(head, end=" ", soft_wrap=True)

    def add(self, text: str) -> None:
        """See Page."""
        self._console.out(visible(text), end="", highlight=False)

    def mark(self, text: str) -> None:
        """See Page."""
        self._console.print(Text(text, style=MARK_STYLE), end="", soft_wrap=True)

    def end(self) -> None:
        """See Page."""
        self._console.print()


class StatusPage:
    """Keeps the last line in hand, because the status stands beneath it. Used from two threads."""

    def __init__(self, console: Console, head: Text, status: Callable[[], Text]) -> None:
        self._console, self._status = console, status
        self._lock = threading.Lock()
        self._last = head + Text(" ")
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()
        self.redraw()

    def add(self, text: str) -> None:
        """See Page."""
        self._grow(Text(visible(text).replace("\t", TAB)))

    def mark(self, text: str) -> None:
        """See Page."""
        self._grow(Text(text, style=MARK_STYLE))

    def redraw(self) -> None:
        """Show the status as it is now."""
        with self._lock:
            self._draw()

    def end(self) -> None:
        """See Page. The status goes."""
        with self._lock:
            self._live.update(self._last, refresh=True)
            self._live.stop()

    def _grow(self, text: Text) -> None:
        with self._lock:
            self._last.append_text(text)
            self._settle()
            self._draw()

    def _draw(self) -> None:
        self._live.update(Group(self._last, self._status()), refresh=True)

    def _settle(self) -> None:
        """Print for good all lines but the last: no later word changes how they break."""
        *whole, last = self._last.split("\n", allow_blank=True)
        for line in whole:
            self._console.print(line)
        rows = last.wrap(self._console, self._console.width)
        if len(rows) > 1 and (row := rows[-1].plain.rstrip()):
            settled, last = last.divide([len(last.plain.rstrip()) - len(row)])
            self._console.print(settled)
        self._last = last
