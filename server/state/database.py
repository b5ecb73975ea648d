"""What outlives the server: one SQLite database and a folder of captures, shared by the gateway and its workers."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...protos.errors import FailedPrecondition, ResourceExhausted

__all__ = ["DATABASE", "ORPHAN_S", "VERSION", "State", "default_state_folder", "write_whole"]

DATABASE = "state.sqlite"
"""Its name in the state folder."""

_SCHEMA = """
CREATE TABLE users (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    key_id TEXT NOT NULL UNIQUE,
    key_hash BLOB NOT NULL,
    limits TEXT NOT NULL,
    created_s REAL NOT NULL,
    revoked_s REAL
);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    plan BLOB NOT NULL,
    revision INTEGER NOT NULL,
    created_s REAL NOT NULL,
    updated_s REAL NOT NULL
);
CREATE INDEX sessions_by_owner ON sessions (owner);
CREATE TABLE captures (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    meta TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    created_s REAL NOT NULL,
    expires_s REAL NOT NULL
);
CREATE INDEX captures_by_owner ON captures (owner);
CREATE TABLE reservations (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    pid INTEGER NOT NULL
);
"""
_SAES = """
CREATE TABLE saes (
    key TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    shared INTEGER NOT NULL,
    model TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    name TEXT NOT NULL,
    meta TEXT NOT NULL
);
CREATE INDEX saes_by_owner ON saes (owner)
"""
_VARIANTS = """
CREATE TABLE variants (
    key TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    shared INTEGER NOT NULL,
    model TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    hash TEXT NOT NULL,
    meta TEXT NOT NULL
);
CREATE INDEX variants_by_owner ON variants (owner);
CREATE TABLE variant_versions (
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    name TEXT NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (owner, model, name)
)
"""
_SESSION_VARIANTS = """
ALTER TABLE sessions ADD COLUMN variants BLOB NOT NULL DEFAULT x''
"""
_MIGRATIONS = (_SCHEMA, _SAES, _VARIANTS, _SESSION_VARIANTS)
"""What each version of the schema adds to the one before."""
VERSION = len(_MIGRATIONS)
ORPHAN_S = 3600.0
"""A file or folder that no row names after so long was left by a process that died between the two."""
BUSY_S = 10.0
"""How long to wait for another process's write."""


class State:
    """The database of one state folder. Used from several threads; several processes may open the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.captures, self.saes, self.uploads = folder / "captures", folder / "saes", folder / "uploads"
        self.variants = folder / "variants"
        try:
            for inside in (self.captures, self.saes, self.uploads, self.variants):
                inside.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)  # key hashes and activations are nobody else's business
            self._lock = threading.RLock()
            self._database = sqlite3.connect(
                folder / DATABASE, timeout=BUSY_S, check_same_thread=False, isolation_level=None
            )
            (folder / DATABASE).chmod(0o600)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._migrate()
        except (OSError, sqlite3.Error) as error:
            raise FailedPrecondition(
                f"the state folder {folder} cannot be used: {error}; choose another with --state"
            ) from None

    def _migrate(self) -> None:
        with self.transaction() as database:
            [(found,)] = database.execute("PRAGMA user_version").fetchall()
            if found < VERSION:
                for statement in (part for script in _MIGRATIONS[found:] for part in script.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version={VERSION}")
            elif found > VERSION:
                raise FailedPrecondition(
                    f"{self.folder} was written by a newer probewire (schema {found}, this one knows {VERSION}); "
                    "upgrade, or choose another folder with --state"
                )

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Everything inside happens, or nothing. Raises ResourceExhausted when the disk is full."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                except BaseException:
                    if self._database.in_transaction:  # on a full disk SQLite has rolled back by itself
                        self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise ResourceExhausted(
                    f"the server's database in {self.folder} cannot be written: {error}", retry_after_s=5.0
                ) from None

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """The database inside a transaction that is under way in this thread."""
        with self._lock:
            assert self._database.in_transaction
            yield self._database

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._lock:
            return self._database.execute(query, values).fetchall()

    @property
    def changes(self) -> int:
        """A number that differs once another connection has written: whether a cache is stale."""
        [(version,)] = self.rows("PRAGMA data_version")
        return version

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            self._database.close()


def default_state_folder() -> Path:
    """Where a server of this user keeps its state."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "probewire"


def write_whole(path: Path, data: bytes) -> None:
    """All of it under its name, or nothing."""
    draft = path.with_name(f"{path.stem}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
