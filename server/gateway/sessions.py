"""Live sessions at the gateway: kept in the state database, and told to the workers that run generations with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakValueDictionary

from ...protos.errors import InvalidArgument, ProbewireError
from ...protos.operations import BY_CALL
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ..auth.callers import Caller
from ..state.sessions import SessionStore
from .workers import Worker

__all__ = ["Sessions"]


class Sessions:
    """The sessions of one gateway. `find` gives the worker of a model. Every call is about the caller's own."""

    def __init__(self, store: SessionStore, find: Callable[[str], Worker]) -> None:
        self._store, self._find = store, find
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, caller: Caller, request: CreateSessionRequest) -> Session:
        """Make one, once the model has said that it can honour it."""
        worker, user = self._find(request.model), caller.user
        with self._store.drafted(user.name, request, worker.config.id, user.limits.sessions) as session:
            async with worker.awake():
                await self._tell(worker, caller, session)
            self._store.add(user.name, session)
        return session

    async def update(self, caller: Caller, request: UpdateSessionRequest) -> Session:
        """Its next revision: first for the generations under way, which may refuse it, then for good."""
        async with self._lock(request.id):  # two updates at once get two revisions
            session = self._store.revised(caller.user.name, request)
            worker = self._find(session.model)
            async with worker.awake():
                await self._tell(worker, caller, session)
            self._store.replace(caller.user.name, session)
        return session

    def _lock(self, session_id: str) -> asyncio.Lock:
        """For what changes one session."""
        return self._locks.setdefault(session_id, asyncio.Lock())

    def get(self, caller: Caller, session_id: str) -> Session:
        """One of the caller's."""
        return self._store.get(caller.user.name, session_id)

    def list(self, caller: Caller) -> list[Session]:
        """All of the caller's."""
        return self._store.list(caller.user.name)

    async def delete(self, caller: Caller, session_id: str) -> None:
        """Forget one; generations under way keep the plan they have."""
        async with self._lock(session_id):  # an update under way would bring it back
            session = self._store.delete(caller.user.name, session_id)
            try:
                worker = self._find(session.model)
                if worker.sessions.pop(session_id, None) is not None:
                    await worker.ask(caller, BY_CALL["drop_session"], session_id)
            except ProbewireError:
                return  # the worker is gone, and the session with it

    async def bind(self, worker: Worker, caller: Caller, session_id: str) -> Session:
        """See to it that a worker knows the session that a generation names."""
        session = self._store.get(caller.user.name, session_id)
        if session.model != worker.config.id:
            raise InvalidArgument(
                f"session {session_id!r} was made for model {session.model!r}, and this request is for {worker.config.id!r}"
            )
        if worker.sessions.get(session.id, 0) < session.revision:
            await self._tell(worker, caller, session)
        return session

    async def _tell(self, worker: Worker, caller: Caller, session: Session) -> None:
        told = worker.sessions  # of the run that is told: another may have begun when the answer is here
        await worker.ask(caller, BY_CALL["put_session"], session)
        told[session.id] = max(session.revision, told.get(session.id, 0))
