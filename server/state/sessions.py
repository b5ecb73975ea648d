"""Live sessions in the state database, each its owner's alone."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from ...protos import probewire_pb2 as pb
from ...protos.errors import FailedPrecondition, NotFound, ResourceExhausted
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.spec import Plan
from ...protos.variants.use import VariantUse
from ...protos.wire.codec import from_proto, to_proto
from .database import State

__all__ = ["SessionStore"]

_COLUMNS = "id, name, model, plan, revision, created_s, updated_s, variants"


class SessionStore:
    """The sessions of one state folder."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._drafts: Counter[str] = Counter()
        """Places that owners hold with sessions which are being made."""
        self._lock = threading.Lock()

    @contextmanager
    def drafted(self, owner: str, request: CreateSessionRequest, model: str, most: int) -> Generator[Session]:
        """A session as `add` will keep it, its place held until then.

        Raises ResourceExhausted when the owner has the most allowed (0: no limit).
        """
        with self._lock:
            have = len(self._state.rows("SELECT id FROM sessions WHERE owner=?", owner)) + self._drafts[owner]
            if most and have >= most:
                raise ResourceExhausted(f"{owner} has {have} sessions, the most allowed; delete one first")
            self._drafts[owner] += 1
        try:
            now = time.time()
            yield Session(
                f"ses-{secrets.token_urlsafe(12)}", request.name, model, request.plan, 1, now, now, request.variants
            )
        finally:
            with self._lock:
                self._drafts[owner] -= 1
                self._drafts += Counter()  # forgets who has none

    def add(self, owner: str, session: Session) -> None:
        """Keep a new one."""
        row = (
            session.id,
            owner,
            session.name,
            session.model,
            _packed(session.plan),
            session.revision,
            session.created_s,
            session.updated_s,
            _packed(session.variants),
        )
        with self._state.transaction() as database:
            database.execute("INSERT INTO sessions VALUES (?,?,?,?,?,?,?,?,?)", row)

    def revised(self, owner: str, request: UpdateSessionRequest) -> Session:
        """A session as `replace` will keep it. Raises FailedPrecondition when another update came in between."""
        old = self.get(owner, request.id)
        if request.revision is not None and request.revision != old.revision:
            raise FailedPrecondition(
                f"session {request.id!r} is at revision {old.revision}, and this update was made from "
                f"{request.revision}; get it again and apply the change to that"
            )
        variants = old.variants if request.variants is None else request.variants
        return replace(old, plan=request.plan, variants=variants, revision=old.revision + 1, updated_s=time.time())

    def replace(self, owner: str, session: Session) -> None:
        """Keep a session's next revision. Raises NotFound when it was deleted meanwhile."""
        packed = (_packed(session.plan), _packed(session.variants))
        values = (*packed, session.revision, session.updated_s, session.id, owner)
        with self._state.transaction() as database:
            changed = database.execute(
                "UPDATE sessions SET plan=?, variants=?, revision=?, updated_s=? WHERE id=? AND owner=?", values
            )
            if not changed.rowcount:
                raise _not_there(session.id)

    def get(self, owner: str, session_id: str) -> Session:
        """One session. Raises NotFound when it is not there or not the owner's."""
        found = self._state.rows(f"SELECT {_COLUMNS} FROM sessions WHERE id=? AND owner=?", session_id, owner)  # noqa: S608  a constant
        if not found:
            raise _not_there(session_id)
        return _session(found[0])

    def list(self, owner: str) -> list[Session]:
        """An owner's sessions, oldest first."""
        query = f"SELECT {_COLUMNS} FROM sessions WHERE owner=? ORDER BY created_s, rowid"  # noqa: S608  as above
        return [_session(row) for row in self._state.rows(query, owner)]

    def delete(self, owner: str, session_id: str) -> Session:
        """Forget one; gives what it was. Raises NotFound."""
        session = self.get(owner, session_id)
        with self._state.transaction() as database:
            database.execute("DELETE FROM sessions WHERE id=? AND owner=?", (session_id, owner))
        return session


def _not_there(session_id: str) -> NotFound:
    return NotFound(f"no session {session_id!r}; it was deleted, or never was")


def _packed(what: Plan | tuple[VariantUse, ...]) -> bytes:
    message = to_proto(what) if isinstance(what, Plan) else pb.VariantUses(values=map(to_proto, what))
    return message.SerializeToString()


def _session(row: tuple[str, str, str, bytes, int, float, float, bytes]) -> Session:
    session_id, name, model, plan, revision, created_s, updated_s, variants = row
    uses = tuple(from_proto(VariantUse, use) for use in pb.VariantUses.FromString(variants).values)
    hooks = from_proto(Plan, pb.Plan.FromString(plan))
    return Session(session_id, name, model, hooks, revision, created_s, updated_s, uses)
