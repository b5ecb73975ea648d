"""A copy of a state folder, whole and of one moment, while a server runs over it or not. A copy is a state folder itself.

The database is copied first, by SQLite, in one piece; then the files that its rows name, which never change. It gets its
name last: a folder without `state.sqlite` is no copy, so one that was interrupted is never taken for one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from ...backends.saes.files import WEIGHTS_FILE
from ...protos.errors import FailedPrecondition, ResourceExhausted
from .database import BUSY_S, DATABASE, VERSION

__all__ = ["Copied", "copy_state"]

PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class Copied:
    """What a copy holds."""

    users: int = 0
    sessions: int = 0
    captures: int = 0
    saes: int = 0
    variants: int = 0
    n_bytes: int = 0
    """Of captures, SAEs and variants."""
    troubles: list[str] = field(default_factory=list[str])
    """Files that are damaged (copied as they are) or lost (left out)."""


def copy_state(source: Path, target: Path) -> Copied:
    """Copy a state folder into one that is not there yet, or empty.

    Raises FailedPrecondition for a source that is none, or is a newer version's, and for a target that holds anything;
    ResourceExhausted when the disk is full. Then nothing of the copy stays.
    """
    if not (source / DATABASE).is_file():
        raise FailedPrecondition(f"{source} is no state folder, nor a whole copy of one: it holds no {DATABASE}")
    if target.resolve().is_relative_to(source.resolve()):
        raise FailedPrecondition(f"{target} lies in {source} itself; name a folder outside it")
    with _filled(target):
        return _Copy(source, target).whole()


@contextmanager
def _filled(target: Path) -> Generator[None]:
    """An empty folder, for its owner alone; empty again, or gone, when what fills it fails."""
    try:
        there = target.exists()
        if there and any(target.iterdir()):
            raise FailedPrecondition(f"{target} is not empty; name a new folder, or move away what is there")
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.chmod(0o700)
        try:
            yield
        except BaseException:
            for child in target.iterdir():
                shutil.rmtree(child) if child.is_dir() else child.unlink()
            if not there:
                target.rmdir()
            raise
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(f"the disk of {target} is full, so nothing was copied") from None
        raise FailedPrecondition(f"the state cannot be copied to {target}: {error}") from None


class _Copy:
    """One copy under way."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target
        self._found = Copied()

    def whole(self) -> Copied:
        """Database, files, and the database's name."""
        draft = self._target / f"{DATABASE}.draft"
        draft.touch(mode=0o600)
        with closing(_opened(self._source / DATABASE)) as now, closing(sqlite3.connect(draft)) as copy:
            now.backup(copy)
            self._check(copy)
            tables = {row[0] for row in copy.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, which opens from a medium that is read only too
            if "reservations" in tables:
                copy.execute("DELETE FROM reservations")  # of requests under way
            self._count(copy, tables)
            if "captures" in tables:
                self._captures(now, copy)
            if "saes" in tables:
                self._saes(now, copy)
            if "variants" in tables:
                self._variants(now, copy)
            copy.commit()
        _flush(draft)
        draft.replace(self._target / DATABASE)
        _flush(self._target)
        return self._found

    def _check(self, copy: sqlite3.Connection) -> None:
        [(version,)] = copy.execute("PRAGMA user_version").fetchall()
        if version > VERSION:
            raise FailedPrecondition(
                f"{self._source} was written by a newer probewire (schema {version}, this one knows {VERSION}); use that one"
            )
        [(state,)] = copy.execute("PRAGMA integrity_check(1)").fetchall()
        if state != "ok":
            raise FailedPrecondition(f"the database in {self._source} is damaged: {state}; take an older copy of it")

    def _count(self, copy: sqlite3.Connection, tables: set[str]) -> None:
        for table in tables & {"users", "sessions"}:
            [(n,)] = copy.execute(f"SELECT COUNT(*) FROM {table}").fetchall()  # noqa: S608  one of two words
            setattr(self._found, table, n)

    def _captures(self, now: sqlite3.Connection, copy: sqlite3.Connection) -> None:
        _folder(self._target / "captures")
        for capture_id, size, crc in copy.execute("SELECT id, bytes, crc FROM captures").fetchall():
            name = Path("captures") / f"{capture_id}.safetensors"

            def good(path: Path, size: int = size, crc: int = crc) -> bool:
                return path.stat().st_size == size and _crc(path) == crc

            if self._took((name,), name, good):
                self._found.captures += 1
            else:
                self._lost("captures", "id", capture_id, now, copy)

    def _saes(self, now: sqlite3.Connection, copy: sqlite3.Connection) -> None:
        _folder(self._target / "saes")
        for key, meta in copy.execute("SELECT key, meta FROM saes").fetchall():
            folder = Path("saes") / key
            names = tuple(folder / path.name for path in sorted((self._source / folder).glob("*")))

            def good(path: Path, expected: str = orjson.loads(meta).get("hash", "")) -> bool:
                return _sha256(path) == expected

            _folder(self._target / folder)
            if folder / WEIGHTS_FILE in names and self._took(names, folder / WEIGHTS_FILE, good):
                self._found.saes += 1
            else:
                shutil.rmtree(self._target / folder)
                self._lost("saes", "key", key, now, copy)

    def _variants(self, now: sqlite3.Connection, copy: sqlite3.Connection) -> None:
        _folder(self._target / "variants")
        for key, meta in copy.execute("SELECT key, meta FROM variants").fetchall():
            folder = Path("variants") / key
            _folder(self._target / folder)
            files: list[dict[str, Any]] = orjson.loads(meta)["files"]
            if all(
                self._took((folder / file["name"],), folder / file["name"], _hashed(file["sha256"])) for file in files
            ):
                self._found.variants += 1
            else:
                shutil.rmtree(self._target / folder)
                self._lost("variants", "key", key, now, copy)

    def _took(self, names: tuple[Path, ...], checked: Path, good: Callable[[Path], bool]) -> bool:
        """Copy files; False when one is gone. One that is not what was kept is copied all the same, and told."""
        try:
            for name in names:
                self._found.n_bytes += _copied(self._source / name, self._target / name)
        except FileNotFoundError:
            return False
        if not good(self._target / checked):
            self._found.troubles.append(f"{self._source / checked} is damaged, and was copied as it is")
        return True

    def _lost(self, table: str, key: str, value: str, now: sqlite3.Connection, copy: sqlite3.Connection) -> None:
        """A row without its file: deleted since the database was copied, or else a trouble."""
        copy.execute(f"DELETE FROM {table} WHERE {key}=?", (value,))  # noqa: S608  constants
        if now.execute(f"SELECT 1 FROM {table} WHERE {key}=?", (value,)).fetchall():  # noqa: S608  constants
            self._found.troubles.append(f"the file of {value} in {self._source / table} is not there: it is left out")


def _hashed(expected: str) -> Callable[[Path], bool]:
    return lambda path: _sha256(path) == expected


def _opened(database: Path) -> sqlite3.Connection:
    """To read only: a server may run over it, also one of an older version."""
    return sqlite3.connect(f"file:{quote(str(database.resolve()))}?mode=ro", uri=True, timeout=BUSY_S)


def _folder(path: Path) -> None:
    path.mkdir(mode=0o700)


def _copied(source: Path, target: Path) -> int:
    """Copy a file, down to the disk; gives its bytes."""
    target.touch(mode=0o600, exist_ok=False)
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, PIECE_BYTES)
        writer.flush()
        os.fsync(writer.fileno())
        return writer.tell()


def _crc(path: Path) -> int:
    crc = 0
    for piece in _pieces(path):
        crc = zlib.crc32(piece, crc)
    return crc


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _flush(path: Path) -> None:
    """A file or folder down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can, for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
