"""A generation as it comes: a step for each token, with the tensors of the forward that sampled it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..protos.errors import FailedPrecondition, Internal
from ..protos.model import Event, Finished, ResolvedHook, Revised, Started, TensorFrame, Token
from ..protos.wire.assemble import assemble
from .requests.asked import Asked
from .requests.for_model import require_model
from .results.captures import BySite, Captures
from .results.collecting import Collector
from .results.results import Generation
from .transport.closable import Closable

__all__ = ["Step", "Stream", "StreamView", "Told"]


@dataclass(frozen=True, slots=True, eq=False)
class Step(BySite):
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


class Told:
    """What a stream has told so far, and the steps that its events make."""

    def __init__(self, asked: Asked, keep: bool) -> None:
        self.asked = asked
        self.started: Started | None = None
        self.text: dict[str, list[str]] = {}
        self.finished: dict[str, Finished] = {}
        self.revision = 0
        self.hooks: tuple[ResolvedHook, ...] = ()
        self.collector = Collector() if keep else None
        self._pending: dict[str, list[TensorFrame]] = {}
        self._last: dict[str, int] = {}

    def start(self, event: Event | None) -> None:
        """Take the first event. Raises Internal for another kind, FailedPrecondition for another model's vector."""
        if not isinstance(event, Started):
            raise Internal(f"the answer began with {type(event).__name__}, not with started")
        require_model(self.asked.vectors_of, event.model, event.model_hash)
        self.started, self.revision, self.hooks = event, event.revision, event.hooks
        self._keep(event)

    def step(self, event: Event) -> Step | None:
        """The step that an event completes, if it does."""
        self._keep(event)
        n_layers = 0 if self.started is None else self.started.n_layers
        if isinstance(event, TensorFrame):
            self._pending.setdefault(event.input, []).append(event)
        elif isinstance(event, Token):
            self.text.setdefault(event.input, []).append(event.text)
            self._last[event.input] = event.index
            return _step(event.input, event.index, event, self._pending.pop(event.input, []), n_layers)
        elif isinstance(event, Revised):
            self.revision, self.hooks = event.revision, event.hooks
        elif isinstance(event, Finished):
            self.finished[event.input] = event
            if event.input in self._pending:
                index = self._last.get(event.input, -1) + 1
                return _step(event.input, index, None, self._pending.pop(event.input), n_layers)
        return None

    def _keep(self, event: Event) -> None:
        if self.collector is not None:
            self.collector.add(event)


class StreamView:
    """What a stream has told so far."""

    def __init__(self, told: Told) -> None:
        self._told = told

    @property
    def started(self) -> Started:
        """Model, backend, dtype, and every hook as the worker understood it at first."""
        if self._told.started is None:
            raise FailedPrecondition("the stream has not begun; await it, or use it in an `async with`")
        return self._told.started

    @property
    def asked(self) -> Asked:
        """The inputs, the plan, sampling and all else that was asked."""
        return self._told.asked

    @property
    def revision(self) -> int:
        """Of the session, that the last step ran under; 0 without one."""
        return self._told.revision

    @property
    def hooks(self) -> tuple[ResolvedHook, ...]:
        """Every hook of that revision, as the worker understood it."""
        return self._told.hooks

    @property
    def finished(self) -> dict[str, Finished]:
        """How each input ended, once it has."""
        return self._told.finished

    @property
    def text(self) -> str:
        """What has been generated so far; with several inputs, one after the other."""
        return "".join(piece for pieces in self._told.text.values() for piece in pieces)

    def texts(self) -> dict[str, str]:
        """What has been generated so far, by input."""
        return {name: "".join(pieces) for name, pieces in self._told.text.items()}

    @property
    def result(self) -> Generation:
        """What `client.generate` would have given, once every input has ended.

        Raises FailedPrecondition before that, and of a stream made with keep=False.
        """
        left = [name for name in self.asked.answered if name not in self.finished]
        if left:
            raise FailedPrecondition(
                f"the stream has not ended (of {left[:8]}), so there is no whole result; read it to its end, or take what "
                "has come: so_far()"
            )
        return self.so_far()

    def so_far(self) -> Generation:
        """What has come by now as a generation; an input that has not ended is `finished` None in it, and says so.

        Raises FailedPrecondition for a stream made with keep=False.
        """
        collector = self._told.collector
        if collector is None:
            raise FailedPrecondition("the stream was made with keep=False, so it has kept no tensors; leave keep out")
        return Generation(*collector.joined([item.name for item in self.asked.inputs]), self.asked)

    def save(self, path: str | Path) -> Path:
        """Write `result` to a file, as it does."""
        return self.result.save(path)


class Stream(StreamView):
    """An iterator of Steps. Use it in a `with`, or close it, from any thread: leaving early cancels the request on the server.

    The request is accepted, and `started` known, once the stream is made. At its end it has a `result`. A thread that waits
    for the next step when another closes the stream finds it ended; `finished` says whether it had come to its end.
    """

    def __init__(self, events: Iterator[Event], asked: Asked, *, keep: bool = True) -> None:
        super().__init__(Told(asked, keep))
        self._events = events if isinstance(events, Closable) else Closable(events)
        self._steps = Closable(_steps(self._events, self._told), self._events.close)
        try:
            self._told.start(next(self._events, None))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is left, from whichever thread. Doing it twice, or after the end, is harmless."""
        self._steps.close()
        self._events.close()


def _steps(events: Iterator[Event], told: Told) -> Iterator[Step]:
    """Events grouped by step. No method of Stream, which would keep a forgotten stream alive and running."""
    for event in events:
        step = told.step(event)
        if step is not None:
            yield step


def _step(name: str, index: int, token: Token | None, frames: list[TensorFrame], n_layers: int) -> Step:
    revision = token.revision if token is not None else max(frame.revision for frame in frames)
    return Step(name, index, token, Captures(assemble(frames).values(), n_layers), revision)
