"""A generation as it comes: a step for each token, with the tensors of the forward that sampled it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ..protos.assemble import assemble
from ..protos.errors import Internal
from ..protos.model import Event, Finished, ResolvedHook, Revised, Started, TensorFrame, Token
from ..protos.tensors import Array
from .captures import Captures
from .closable import Closable

__all__ = ["Step", "Stream"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One forward of one input: the rows it computed, and the token it sampled.

    Step 0 has the rows of the prompt; step i the row of token i−1, whose forward sampled token i. The last sampled
    token is never read by the model, so it has no row.
    """

    input: str
    index: int
    """Of the token: 0 for the first new one."""
    token: Token | None
    """None on a last step that only brings what is sent at the end (`last`, `mean`)."""
    captures: Captures
    revision: int = 0
    """Of the session, that this forward ran under; 0 without one."""

    @property
    def text(self) -> str:
        """Text that became final with this token; may be empty while a character is incomplete."""
        return self.token.text if self.token is not None else ""

    def __getitem__(self, site: str) -> Array:
        """The rows of this step at a site: [pos, …]."""
        return self.captures[site]

    def __contains__(self, site: object) -> bool:
        return site in self.captures

    def positions(self, site: str) -> tuple[int, ...]:
        """Absolute position of each row."""
        return self.captures.positions(site)


@dataclass(slots=True)
class _Seen:
    """What a stream has told so far."""

    text: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    finished: dict[str, Finished] = field(default_factory=dict[str, Finished])
    revision: int = 0
    hooks: tuple[ResolvedHook, ...] = ()


class Stream:
    """An iterator of Steps. Use it in a `with`, or close it, from any thread: leaving early cancels the request on the server.

    The request is accepted, and `started` known, once the stream is made. Tensors are not kept; `text` is. A thread that
    waits for the next step when another closes the stream finds it ended; `finished` says whether it had come to its end.
    """

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events if isinstance(events, Closable) else Closable(events)
        self._seen = _Seen()
        self._steps = Closable(_steps(self._events, self._seen), self._events.close)
        first = next(self._events, None)
        if not isinstance(first, Started):
            self.close()
            raise Internal(f"the answer began with {type(first).__name__}, not with started")
        self.started = first
        """Model, backend, dtype, and every hook as the worker understood it at first."""
        self._seen.revision, self._seen.hooks = first.revision, first.hooks

    @property
    def revision(self) -> int:
        """Of the session, that the last step ran under; 0 without one."""
        return self._seen.revision

    @property
    def hooks(self) -> tuple[ResolvedHook, ...]:
        """Every hook of that revision, as the worker understood it."""
        return self._seen.hooks

    @property
    def finished(self) -> dict[str, Finished]:
        """How each input ended, once it has."""
        return self._seen.finished

    @property
    def text(self) -> str:
        """What has been generated so far; with several inputs, one after the other."""
        return "".join(piece for pieces in self._seen.text.values() for piece in pieces)

    def texts(self) -> dict[str, str]:
        """What has been generated so far, by input."""
        return {name: "".join(pieces) for name, pieces in self._seen.text.items()}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is left, from whichever thread. Doing it twice, or after the end, is harmless."""
        self._steps.close()
        self._events.close()


def _steps(events: Iterator[Event], seen: _Seen) -> Iterator[Step]:
    """Events grouped by step. No method of Stream, which would keep a forgotten stream alive and running."""
    pending: dict[str, list[TensorFrame]] = {}
    last: dict[str, int] = {}
    for event in events:
        if isinstance(event, TensorFrame):
            pending.setdefault(event.input, []).append(event)
        elif isinstance(event, Token):
            seen.text.setdefault(event.input, []).append(event.text)
            last[event.input] = event.index
            yield _step(event.input, event.index, event, pending.pop(event.input, []))
        elif isinstance(event, Revised):
            seen.revision, seen.hooks = event.revision, event.hooks
        elif isinstance(event, Finished):
            seen.finished[event.input] = event
            if event.input in pending:
                yield _step(event.input, last.get(event.input, -1) + 1, None, pending.pop(event.input))


def _step(name: str, index: int, token: Token | None, frames: list[TensorFrame]) -> Step:
    revision = token.revision if token is not None else max(frame.revision for frame in frames)
    return Step(name, index, token, Captures(assemble(frames).values()), revision)
