"""Live sessions at the gateway: kept once the worker can honour them, and told to each run of a worker once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from probewire.protos.edits import Scale
from probewire.protos.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ProbewireError,
    ResourceExhausted,
    Unavailable,
)
from probewire.protos.operations import Operation
from probewire.protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from probewire.protos.spec import Hook, Plan
from probewire.server.auth.callers import Caller
from probewire.server.auth.users import User, UserLimits
from probewire.server.config import WorkerConfig
from probewire.server.gateway.sessions import Sessions
from probewire.server.state.database import State
from probewire.server.state.sessions import SessionStore

PLAN, QUIETER = (Plan((Hook("mlp_out.1", edit=Scale(factor)),)) for factor in (0.5, 0.25))
ADA, BOB = (Caller(User(name, "researcher", UserLimits(sessions=2)), f"req-{name}") for name in ("ada", "bob"))


class Told:
    """A worker: keeps what it is told, and refuses when it is to."""

    def __init__(self, name: str) -> None:
        self.config = WorkerConfig(model=name, id=name)
        self.sessions: dict[str, int] = {}
        self.told: list[tuple[str, str, Any]] = []
        self.error: ProbewireError | None = None
        self.held = 0
        self.slow: asyncio.Event | None = None

    @asynccontextmanager
    async def awake(self) -> AsyncGenerator[None]:
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def ask(self, caller: Caller, operation: Operation, *args: Any) -> None:
        if self.slow is not None:
            await self.slow.wait()
        if self.error is not None:
            raise self.error
        self.told.append((caller.user.name, operation.call, args[0]))


class Box:
    """The sessions of a gateway with two workers."""

    def __init__(self, state: State) -> None:
        self.workers = {name: Told(name) for name in ("m", "n")}
        self.store = SessionStore(state)
        find: Any = self.find
        self.sessions = Sessions(self.store, find)

    def find(self, model: str) -> Told:
        found = self.workers.get(model or "m")
        if found is None:
            raise NotFound(f"no model {model!r} is loaded")
        return found

    @property
    def m(self) -> Any:
        return self.workers["m"]

    async def made(self, caller: Caller = ADA, **fields: Any) -> Session:
        return await self.sessions.create(caller, CreateSessionRequest(PLAN, **fields))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    state = State(tmp_path / "state")
    yield Box(state)
    state.close()


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


def test_a_session_is_told_to_its_worker_and_then_kept(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made(name="mine")
        assert (session.model, session.revision) == ("m", 1)
        assert box.m.told == [("ada", "put_session", session)]
        assert box.m.sessions == {session.id: 1}
        assert box.sessions.get(ADA, session.id) == session
        assert box.sessions.list(ADA) == [session]
        assert box.m.held == 0

    play(scenario)


def test_what_the_model_cannot_honour_is_not_kept_and_holds_no_place(box: Box) -> None:
    async def scenario() -> None:
        box.m.error = InvalidArgument("hook 0: no such site")
        for _ in range(3):
            with pytest.raises(InvalidArgument, match="no such site"):
                await box.made()
        box.m.error = None
        assert box.sessions.list(ADA) == []
        await box.made()
        await box.made()
        with pytest.raises(ResourceExhausted, match="ada has 2 sessions, the most allowed"):
            await box.made()
        await box.made(BOB)

    play(scenario)


def test_an_update_is_told_first_and_kept_only_if_it_is_taken(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made()
        box.m.error = InvalidArgument("a generation cannot follow")
        with pytest.raises(InvalidArgument, match="cannot follow"):
            await box.sessions.update(ADA, UpdateSessionRequest(session.id, QUIETER))
        assert box.sessions.get(ADA, session.id) == session
        box.m.error = None
        revised = await box.sessions.update(ADA, UpdateSessionRequest(session.id, QUIETER, 1))
        assert (revised.revision, revised.plan) == (2, QUIETER)
        assert box.m.told[-1] == ("ada", "put_session", revised)
        assert box.sessions.get(ADA, session.id) == revised
        with pytest.raises(FailedPrecondition, match="is at revision 2"):
            await box.sessions.update(ADA, UpdateSessionRequest(session.id, PLAN, 1))

    play(scenario)


def test_updates_at_once_get_a_revision_each(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made()
        updates = [box.sessions.update(ADA, UpdateSessionRequest(session.id, QUIETER)) for _ in range(5)]
        found = await asyncio.gather(*updates)
        assert [one.revision for one in found] == [2, 3, 4, 5, 6]
        assert box.sessions.get(ADA, session.id).revision == 6

    play(scenario)


def test_a_deletion_waits_for_an_update_that_would_bring_it_back(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made()
        box.m.slow = asyncio.Event()
        update = asyncio.create_task(box.sessions.update(ADA, UpdateSessionRequest(session.id, QUIETER)))
        await asyncio.sleep(0)
        deletion = asyncio.create_task(box.sessions.delete(ADA, session.id))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not deletion.done()
        box.m.slow.set()
        assert (await update).revision == 2
        await deletion
        assert box.sessions.list(ADA) == []

    play(scenario)


def test_a_deleted_session_is_forgotten_by_the_worker_that_knows_it(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made()
        await box.sessions.delete(ADA, session.id)
        assert box.m.told[-1] == ("ada", "drop_session", session.id)
        assert box.m.sessions == {}
        with pytest.raises(NotFound):
            box.sessions.get(ADA, session.id)
        with pytest.raises(NotFound):
            await box.sessions.delete(ADA, session.id)

    play(scenario)


def test_a_session_whose_worker_is_gone_can_be_deleted(box: Box) -> None:
    async def scenario() -> None:
        first, second, unknown = await box.made(), await box.made(model="n"), await box.made(BOB)
        box.m.error = Unavailable("the worker died")
        del box.workers["n"]
        box.m.sessions.pop(unknown.id)
        n_told = len(box.m.told)
        await box.sessions.delete(ADA, first.id)
        await box.sessions.delete(ADA, second.id)
        await box.sessions.delete(BOB, unknown.id)
        assert box.sessions.list(ADA) == box.sessions.list(BOB) == []
        assert len(box.m.told) == n_told

    play(scenario)


def test_a_generation_tells_a_run_of_the_worker_that_does_not_know_the_session(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made()
        assert await box.sessions.bind(box.m, ADA, session.id) == session
        assert len(box.m.told) == 1, "it knows"
        box.m.sessions = {}  # another run
        assert await box.sessions.bind(box.m, ADA, session.id) == session
        assert await box.sessions.bind(box.m, ADA, session.id) == session
        assert [call for _, call, _ in box.m.told] == ["put_session", "put_session"]
        box.m.sessions[session.id] = 0
        await box.sessions.bind(box.m, ADA, session.id)
        assert box.m.sessions == {session.id: 1}

    play(scenario)


def test_a_run_that_begins_while_another_is_told_is_not_taken_to_know(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made()
        before = box.m.sessions = {}
        box.m.slow = asyncio.Event()
        binding = asyncio.create_task(box.sessions.bind(box.m, ADA, session.id))
        await asyncio.sleep(0)
        box.m.sessions = {}
        box.m.slow.set()
        await binding
        assert before == {session.id: 1}
        assert box.m.sessions == {}

    play(scenario)


def test_a_session_is_of_one_model(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made()
        other: Any = box.workers["n"]
        with pytest.raises(InvalidArgument) as caught:
            await box.sessions.bind(other, ADA, session.id)
        assert caught.value.message == (f"session {session.id!r} was made for model 'm', and this request is for 'n'")
        assert other.told == []

    play(scenario)


def test_another_callers_session_does_not_exist(box: Box) -> None:
    async def scenario() -> None:
        session = await box.made()
        for call in (
            lambda: box.sessions.bind(box.m, BOB, session.id),
            lambda: box.sessions.update(BOB, UpdateSessionRequest(session.id)),
            lambda: box.sessions.delete(BOB, session.id),
        ):
            with pytest.raises(NotFound):
                await call()
        with pytest.raises(NotFound):
            box.sessions.get(BOB, session.id)
        assert box.sessions.list(BOB) == []
        assert box.sessions.get(ADA, session.id) == session

    play(scenario)
