"""One reply on the screen: plain text, or tokens with what was asked to be shown beneath each."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from ..clients.stream import Step, Stream
from .chat_session import Session
from .chat_shows import Reading, Show
from .gloss import MAX_WORD, Gloss, bar, clipped, number, shown_token, visible

__all__ = ["Reply"]


class Reply:
    """Prints a stream as it comes and keeps its text."""

    def __init__(self, console: Console, session: Session) -> None:
        self.text = ""
        self._console, self._session = console, session
        self._shows = session.shows
        self._prompt_length = 0
        self._n_tokens = 0

    def follow(self, stream: Stream) -> None:
        """Print everything."""
        self._prompt_length = len(stream.started.inputs[0].token_ids)
        self._title()
        if self._shows:
            self._glossed(stream)
        else:
            self._plain(stream)
        self._ended(stream)

    def interrupted(self) -> None:
        """The user stopped it."""
        self._console.print("\n[dim](stopped; the server was told)[/dim]")

    def broken(self) -> None:
        """The server, or the way to it, failed."""
        if self.text:
            self._console.print()

    def _title(self) -> None:
        steered = ", ".join(f"{item.site} × {item.alpha:g}" for item in self._session.steerings)
        note = f" [yellow](steered: {escape(steered)})[/yellow]" if steered else ""
        end = "\n" if self._shows else " "
        self._console.print(f"[bold green]model[/bold green]{note} [bold green]›[/bold green]", end=end)

    def _plain(self, stream: Stream) -> None:
        for step in stream:
            self.text += step.text
            self._console.out(visible(step.text), end="", highlight=False)
        self._console.print()

    def _glossed(self, stream: Stream) -> None:
        self._legend()
        gloss = Gloss(self._console, self._marks(), [self._room(show) for show in self._shows])
        try:
            for step in stream:
                self._fill(gloss, step)
                if step.token is not None:
                    gloss.add(shown_token(step.text, first=self._n_tokens == 0))
                    self._n_tokens += 1
                    self.text += step.text
        finally:
            gloss.flush()

    def _fill(self, gloss: Gloss, step: Step) -> None:
        """The step's rows belong to the token before: the forward that reads a token samples the next."""
        line = 0
        for show in self._shows:
            for position, readings in show.read(step.captures):
                if position == self._prompt_length + self._n_tokens - 1:
                    for offset, reading in enumerate(readings):
                        gloss.fill(line + offset, self._shown(show, reading))
            line += show.n_rows

    def _shown(self, show: Show, reading: Reading) -> str:
        if reading.unit is not None:
            unit = str(reading.unit)
            if show.site == "logits":
                unit = clipped(shown_token(self._session.word(reading.unit), first=False))
            return f"{unit}:{number(reading.value)}"
        seen = self._session.largest
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
