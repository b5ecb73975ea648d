"""A request on its way out, for the tests of deliveries: a reader, a store, a thread and sessions, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence as SequenceOf
from typing import Any

import numpy as np

from probewire.backends.hooks.bound import BoundHook, BoundPlan
from probewire.backends.hooks.sequence import Rows, Sequence, StepResult
from probewire.backends.model.tokenizer import Tokenizer
from probewire.protos.errors import NotFound, ProbewireError
from probewire.protos.model import (
    Event,
    Input,
    InputStarted,
    Sampling,
    Started,
    StoredCapture,
    Token,
)
from probewire.protos.sessions import Session
from probewire.protos.sites import Site
from probewire.protos.spec import Capture, Hook, Plan
from probewire.server.auth.callers import Caller
from probewire.server.auth.users import User
from probewire.server.state.captures import Kept, Reservation
from probewire.server.worker.input.prepared import Prepared, PreparedInput
from probewire.server.worker.output.delivery import ActiveRequest
from tests.tiny_models import SPECIAL_TOKENS

EOS = 256 + SPECIAL_TOKENS.index("<|eos|>")
READ, KEEP = Hook("resid_post.1", capture=Capture()), Hook("z.1", capture=Capture(store=True), id="kept")


class Reader:
    """Keeps what it is handed, and reads only when told to."""

    def __init__(self) -> None:
        self.steps: list[list[Event]] = []
        self.ends: list[ProbewireError | None] = []
        self.backlog_bytes = 0

    def put(self, events: list[Event]) -> None:
        assert not self.ends, "nothing comes behind the end"
        self.steps.append(events)

    def end(self, error: ProbewireError | None) -> None:
        self.ends.append(error)

    @property
    def events(self) -> list[Event]:
        return [event for step in self.steps for event in step]


class Store:
    """Keeps captures once it is told to go on."""

    def __init__(self) -> None:
        self.put: list[Kept] = []
        self.deleted: list[str] = []
        self.released: list[object] = []
        self.waiting: list[Callable[[], None]] = []
        self.error: ProbewireError | None = None
        self.fault: ProbewireError | None = None

    def put_later(self, owner: str, captures: SequenceOf[Kept], done: Callable[[Any], None]) -> None:
        assert owner == "ada"

        def work() -> None:
            self.put += captures
            stored = tuple(
                StoredCapture(f"cap-{i}", kept.site, kept.input, kept.positions, "float32", kept.array.shape)
                for i, kept in enumerate(captures)
            )
            done(self.error or stored)

        self.waiting.append(work)

    def delete(self, owner: str, capture_id: str) -> None:
        self.deleted.append(capture_id)
        raise NotFound("it has expired")

    def release(self, reservation: object) -> None:
        if self.fault is not None:
            raise self.fault
        self.released.append(reservation)

    def go_on(self) -> None:
        """The disk's thread comes to it."""
        for work in self.waiting:
            work()
        self.waiting.clear()


class Thread:
    """The model's thread: whatever is put off happens at once."""

    def later(self, command: Callable[[], None]) -> None:
        command()

    def drop(self, job: ActiveRequest, error: ProbewireError) -> None:
        job.fail(error)


class Sessions:
    """The live sessions of a worker: one, or none."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def find(self, session_id: str) -> Session | None:
        return self.session if session_id else None


RESERVATION = Reservation("r", "ada")


class Box:
    """One request with its inputs, all of it made by hand."""

    def __init__(self, tokenizer: Tokenizer, *hooks: Hook, mode: Any = "generate", **sampling: Any) -> None:
        self.reader, self.store, self.sessions = Reader(), Store(), Sessions()
        self.tokenizer = tokenizer
        self.plan = Plan(hooks)
        self.mode = mode
        sampling.setdefault("max_new_tokens", 3)
        self.sampling = Sampling(**sampling)
        self.items = [self._item(name) for name in ("x", "y")]
        self.again: list[str] = []
        any_of: Any = self
        self.job = ActiveRequest(
            self.prepared(),
            Caller(User("ada", "researcher"), "req-1"),
            self.reader,
            tokenizer,
            any_of.store,
            sessions=any_of.sessions,
            reservation=RESERVATION,
            thread=Thread(),
            prepare_again=self.prepare_again,
        )
        self.job.remaining = 2

    def _item(self, name: str) -> PreparedInput:
        bound = tuple(BoundHook(i, hook, (Site.parse(hook.site),)) for i, hook in enumerate(self.plan.hooks))
        plan = BoundPlan(self.mode, 2, 5, bound, {}, {}, {})
        sequence = Sequence(f"req-1.{name}", [65, 66], 2, plan, self.sampling)
        return PreparedInput(Input("AB", name=name), [65, 66], self.mode == "generate", sequence)

    def prepared(self, revision: int = 0) -> Prepared:
        inputs = tuple(InputStarted(item.item.name, (65, 66), ("A", "B")) for item in self.items)
        started = Started("req-1", "m", "h", "torch", "cpu", "float32", "eager", {}, (), inputs, revision)
        return Prepared("req-1", self.mode, self.plan, self.items, started, session="ses-1")

    def prepare_again(self) -> Prepared:
        self.again.append("again")
        assert self.sessions.session is not None
        return self.prepared(self.sessions.session.revision)

    def begin(self) -> None:
        self.job.start()
        for item in self.items:
            self.job.admitted(item)

    def id(self, letter: str) -> int:
        """The token of a letter."""
        return self.tokenizer.encode(Input(letter))[-1]

    def step(self, name: str, token: str | int | None, *rows: Rows, revision: int = 0, **told: Any) -> bool:
        """A step of one input, as the engine makes it: the token is on the sequence."""
        token = self.id(token) if isinstance(token, str) else token
        sequence = self.sequence(name)
        if token is not None:
            sequence.tokens.append(token)
        done = self.job.deliver_step(StepResult(sequence, rows, token, revision=revision, **told))
        self.job.send()
        return done

    def sequence(self, name: str) -> Sequence:
        sequence = self.items["xy".index(name)].sequence
        assert sequence is not None
        return sequence

    def texts(self, name: str) -> str:
        return "".join(e.text for e in self.reader.events if isinstance(e, Token) and e.input == name)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.reader.events if isinstance(event, kind)]


def rows(hook: int, position: int, value: float, site: str = "resid_post.1") -> Rows:
    return Rows(hook, (site,), (position,), np.array([[[value]]], dtype=np.float32))
