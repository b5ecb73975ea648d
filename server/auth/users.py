"""Who may use the box: names, roles, limits and hashed keys, in the state database.

A key is `pw_` + 8 characters that find it + `_` + 43 that prove it (256 random bits). Only SHA-256 of the whole is
kept: a secret of that length cannot be guessed, so a slow hash would add nothing but load.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import orjson

from ...protos.errors import FailedPrecondition, InvalidArgument, NotFound
from ...protos.operations import Role
from ...protos.wire.codec import from_json, to_json
from ..state.database import State

__all__ = ["LOCAL", "ROLES", "Role", "User", "UserLimits", "Users"]

ROLES: tuple[Role, ...] = tuple(reversed(get_args(Role)))

WEIGHTS: dict[Role, float] = {"admin": 2.0, "researcher": 1.0, "viewer": 1.0}
"""Share of a busy model, relative to the others waiting for it."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._@-]{0,63}")
_KEY = re.compile(r"pw_([A-Za-z0-9]{8})_[A-Za-z0-9_-]{43}")
_NOBODY = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class UserLimits:
    """What one user may hold at a time. 0: no limit."""

    requests: int = 128
    """Requests under way or queued, all models together."""
    tokens_per_minute: int = 0
    """Prompt and new tokens, over a sliding minute."""
    store_bytes: int = 4 << 30
    """Stored captures."""
    sessions: int = 64

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise InvalidArgument(f"limit {name} must be 0 (none) or more, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a key."""

    name: str
    role: Role
    limits: UserLimits = UserLimits()
    created_s: float = 0.0
    revoked_s: float | None = None
    key_id: str = ""
    """The part of the key that may be shown."""

    @property
    def weight(self) -> float:
        """Share of a busy model."""
        return WEIGHTS[self.role]


LOCAL = User("local", "admin", UserLimits(requests=0, store_bytes=0, sessions=0))
"""Whoever reaches a box that has no users: only this machine can, unless the operator insisted."""


class Users:
    """The users of one state folder."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._cache: dict[str, tuple[User, bytes]] = {}
        """Key id → user and hash, of those who are not revoked."""
        self._seen: int | None = None

    def add(self, name: str, role: Role, limits: UserLimits | None = None) -> str:
        """Make a user; gives the key, which is shown this once. Raises for a bad or taken name."""
        if not _NAME.fullmatch(name) or name == LOCAL.name:
            raise InvalidArgument(
                f"a user's name is 1 to 64 letters, digits, or . _ @ - (and not {LOCAL.name!r}), got {name[:80]!r}"
            )
        if role not in ROLES:
            raise InvalidArgument(f"unknown role {role!r}; allowed: {', '.join(ROLES)}")
        key, key_id, digest = _new_key()
        row = (name, role, key_id, digest, orjson.dumps(to_json(limits or UserLimits())).decode(), time.time(), None)
        try:
            with self._state.transaction() as database:
                database.execute("INSERT INTO users VALUES (?,?,?,?,?,?,?)", row)
        except sqlite3.IntegrityError:
            raise FailedPrecondition(
                f"there is a user {name!r} already (a revoked one keeps the name); `users rotate` gives a new key"
            ) from None
        self._seen = None
        return key

    def rotate(self, name: str) -> str:
        """Give a user a new key, and end the old one; a revoked user is let in again."""
        self.get(name)
        key, key_id, digest = _new_key()
        with self._state.transaction() as database:
            database.execute(
                "UPDATE users SET key_id=?, key_hash=?, revoked_s=NULL WHERE name=?", (key_id, digest, name)
            )
        self._seen = None
        return key

    def change(self, name: str, *, role: Role | None = None, limits: Mapping[str, int] | None = None) -> User:
        """Another role, other limits (those named); what is not given stays. The key stays too."""
        with self._state.transaction() as database:  # of two changes at once neither loses the other's
            old = self.get(name)
            new = replace(old, role=role or old.role, limits=replace(old.limits, **(limits or {})))
            database.execute(
                "UPDATE users SET role=?, limits=? WHERE name=?",
                (new.role, orjson.dumps(to_json(new.limits)).decode(), name),
            )
        self._seen = None
        return new

    def revoke(self, name: str) -> None:
        """End a user's key. What they stored stays until it expires."""
        self.get(name)
        with self._state.transaction() as database:
            database.execute("UPDATE users SET revoked_s=? WHERE name=?", (time.time(), name))
        self._seen = None

    def list(self) -> list[User]:
        """Everybody, revoked users too, in the order they came."""
        return [_user(row) for row in self._state.rows(f"SELECT {_COLUMNS} FROM users ORDER BY created_s")]  # noqa: S608  a constant

    def get(self, name: str) -> User:
        """One user. Raises NotFound."""
        found = self._state.rows(f"SELECT {_COLUMNS} FROM users WHERE name=?", name)  # noqa: S608  as above
        if not found:
            names = ", ".join(user.name for user in self.list()) or "none; make one with `probewire users add NAME`"
            raise NotFound(f"no user {name!r}; users: {names}")
        return _user(found[0])

    @property
    def any(self) -> bool:
        """Whether anybody was ever added: from then on every request needs a key."""
        return bool(self._state.rows("SELECT 1 FROM users LIMIT 1"))

    def by_key(self, key: str) -> User | None:
        """Whose key it is; None when nobody's. Takes as long for a wrong secret as for a right one."""
        self._refresh()
        match = _KEY.fullmatch(key)
        user, expected = self._cache.get(match[1] if match else "", (None, _NOBODY))
        good = hmac.compare_digest(hashlib.sha256(key.encode()).digest(), expected)
        return user if good else None

    def is_current(self, user: User) -> bool:
        """Whether a user who came in earlier would come in now, with the same key."""
        self._refresh()
        return user.key_id in self._cache

    def _refresh(self) -> None:
        changes = self._state.changes
        if changes != self._seen:
            rows = self._state.rows(f"SELECT {_COLUMNS}, key_hash FROM users WHERE revoked_s IS NULL")  # noqa: S608  as above
            self._cache = {row[5]: (_user(row[:-1]), row[-1]) for row in rows}
            self._seen = changes


_COLUMNS = "name, role, limits, created_s, revoked_s, key_id"


def _user(row: tuple[str, Role, str, float, float | None, str]) -> User:
    return replace(
        User(*row[:2]),
        limits=from_json(UserLimits, orjson.loads(row[2])),
        created_s=row[3],
        revoked_s=row[4],
        key_id=row[5],
    )


def _new_key() -> tuple[str, str, bytes]:
    alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjkmnpqrstuvwxyz23456789"
    key_id = "".join(secrets.choice(alphabet) for _ in range(8))
    key = f"pw_{key_id}_{secrets.token_urlsafe(32)}"
    return key, key_id, hashlib.sha256(key.encode()).digest()
