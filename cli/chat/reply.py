"""One reply on the screen: plain text, or tokens with what was asked to be shown beneath each."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from ...clients.stream import Step, Stream
from ..token_table import MAX_WORD, TokenTable, bar, clipped, number, shown_token
from .conversation import Conversation
from .keys import Turning, turning
from .page import Page, PlainPage, StatusPage
from .shows import Reading, Show

__all__ = ["Reply"]


class Reply:
    """Prints a stream as it comes and keeps its text. Keys may steer it meanwhile."""

    def __init__(self, console: Console, conversation: Conversation) -> None:
        self.text = ""
        self._console, self._conversation, self._control = console, conversation, conversation.control
        self._setting = self._control.setting
        self._shows = self._setting.shows
        self._prompt_length = 0
        self._n_tokens = 0
        self._revision = 0

    def follow(self, stream: Stream) -> None:
        """Print everything."""
        self._prompt_length = len(stream.started.inputs[0].token_ids)
        self._revision = stream.revision
        with turning(self._control) as turned:
            if self._shows:
                self._glossed(stream, turned)
            else:
                self._plain(stream, turned)
        self._ended(stream)

    def interrupted(self) -> None:
        """The user stopped it."""
        self._console.print("[dim](stopped; the server was told)[/dim]")

    def _title(self) -> Text:
        title = Text("model", style="bold green")
        if self._setting.steers:
            steered = ", ".join(f"{item.site} × {item.alpha:g}" for item in self._setting.steered())
            title = title + Text(f" (steered: {steered})", style="yellow")
        elif self._setting.steerings:
            title = title + Text(" (steering off)", style="yellow")
        return title + Text(" ›", style="bold green")

    def _plain(self, stream: Stream, turned: Turning | None) -> None:
        page = self._page(turned)
        try:
            for step in stream:
                if mark := self._turn(step):
                    page.mark(f"⟨{mark}⟩")
                self.text += step.text
                page.add(step.text)
        finally:
            page.end()

    def _page(self, turned: Turning | None) -> Page:
        if turned is None or not self._console.is_terminal:
            return PlainPage(self._console, self._title())
        page = StatusPage(self._console, self._title(), turned.status)
        turned.redraw = page.redraw
        return page

    def _turn(self, step: Step) -> str:
        """The label of another revision, where its first token comes."""
        if step.token is None or step.revision == self._revision:
            return ""
        self._revision = step.revision
        return self._control.label(step.revision)

    def _glossed(self, stream: Stream, turned: Turning | None) -> None:
        self._console.print(self._title())
        self._legend()
        status = turned.status if turned is not None else None
        table = TokenTable(self._console, self._marks(), [self._room(show) for show in self._shows], status)
        if turned is not None:
            turned.redraw = table.redraw
        try:
            for step in stream:
                self._fill(table, step)
                if mark := self._turn(step):
                    table.note(f"⟨{mark}⟩")
                if step.token is not None:
                    table.add(shown_token(step.text, first=self._n_tokens == 0))
                    self._n_tokens += 1
                    self.text += step.text
        finally:
            table.flush()

    def _fill(self, table: TokenTable, step: Step) -> None:
        """The step's rows belong to the token before: the forward that reads a token samples the next."""
        line = 0
        for show in self._shows:
            for position, readings in show.read(step.captures):
                if position == self._prompt_length + self._n_tokens - 1:
                    for offset, reading in enumerate(readings):
                        table.fill(line + offset, self._shown(show, reading))
            line += show.n_rows

    def _shown(self, show: Show, reading: Reading) -> str:
        if reading.unit is not None:
            unit = str(reading.unit)
            if show.site == "logits":
                unit = clipped(shown_token(self._conversation.word(reading.unit), first=False))
            return f"{unit}:{number(reading.value)}"
        seen = self._conversation.largest
        largest = seen[show] = max(seen.get(show, 0.0), abs(reading.value))
        return f"{bar(reading.value, largest)} {number(reading.value)}"

    def _room(self, show: Show) -> int:
        """Columns for one number."""
        if show.what != "top_k":
            return 8
        unit = MAX_WORD if show.site == "logits" else len(str(max(show.width - 1, 1)))
        return unit + 1 + 5

    def _marks(self) -> list[str]:
        return [
            mark if row == 0 else ""
            for mark, show in zip("abcdefgh", self._shows, strict=False)
            for row in range(show.n_rows)
        ]

    def _legend(self) -> None:
        for mark, show in zip("abcdefgh", self._shows, strict=False):
            self._console.print(f"[dim]{mark} {escape(str(show))}[/dim]")

    def _ended(self, stream: Stream) -> None:
        for finished in stream.finished.values():
            n, total_s = finished.usage.completion_tokens, finished.timings.total_s
            speed = f" · {n / total_s:.1f} tokens/s" if total_s else ""
            self._console.print(f"[dim]{n} tokens · {finished.reason}{speed}[/dim]")
        if self._control.setting is not self._setting:
            for line in self._control.setting.lines():
                self._console.print(f"[dim]{escape(line)}[/dim]", soft_wrap=True)
