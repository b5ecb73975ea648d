"""The folders that conversions have left in the cache: how large, of what, used when, and whether their sources are still there.

Where sources lie is written beside a folder and not into it: a record that travels names no path of a machine.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ....protos.errors import FailedPrecondition, NotFound
from .record import origin_of

__all__ = ["CONVERTED", "KeptFolder", "kept_folders", "lock_of", "note_use", "remove_kept", "remove_left_overs"]

CONVERTED = "converted"
"""Folder of the cache folder."""


@dataclass(frozen=True, slots=True)
class KeptFolder:
    """One of them."""

    folder: Path
    n_bytes: int
    origin: str
    """How its sources were stored, and their names."""
    sources: tuple[Path, ...]
    """Where they lay; empty where nobody has noted it (folders of earlier versions)."""
    used_s: float
    """When it was last served or asked for, in seconds since 1970."""

    @property
    def gone(self) -> tuple[Path, ...]:
        """Sources that are not there any more."""
        return tuple(path for path in self.sources if not path.exists())


def kept_folders(cache_dir: Path) -> list[KeptFolder]:
    """All of a cache folder, the largest first."""
    found = [folder for folder in (cache_dir / CONVERTED).glob("*") if folder.is_dir() and folder.name[0] != "."]
    return sorted(map(_kept, found), key=lambda kept: -kept.n_bytes)


def note_use(folder: Path, sources: Iterable[Path]) -> None:
    """Write down where a folder's sources lie, and that it is used now. A cache that cannot be written to keeps its old note."""
    note = _note(folder)
    with suppress(OSError):
        draft = note.with_name(f"{note.name}.{uuid.uuid4().hex[:8]}")
        draft.write_text(json.dumps({"sources": [str(path.resolve()) for path in sources]}), encoding="utf-8")
        draft.replace(note)


def remove_kept(cache_dir: Path, name: str) -> KeptFolder:
    """Delete one, by its folder's name. Raises NotFound, and FailedPrecondition while it is being written."""
    kept = {one.folder.name: one for one in kept_folders(cache_dir)}
    if name not in kept:
        raise NotFound(f"there is no {name!r} in {cache_dir / CONVERTED}; there are: {', '.join(kept) or 'none'}")
    folder = kept[name].folder
    try:
        with lock_of(folder).acquire(timeout=0):
            away = folder.with_name(f".{name}.making-{uuid.uuid4().hex[:8]}")  # half a removal is a left-over
            folder.rename(away)
            _note(folder).unlink(missing_ok=True)
            shutil.rmtree(away)
    except Timeout:
        raise FailedPrecondition(f"{folder} is being written by another process; try again when it is done") from None
    except OSError as error:
        raise FailedPrecondition(f"{error.filename or folder} cannot be removed: {error.strerror or error}") from error
    return kept[name]


def remove_left_overs(cache_dir: Path) -> int:
    """Delete what killed conversions left; the bytes that it took."""
    freed = 0
    for left in (cache_dir / CONVERTED).glob(".*.making-*"):
        whole = left.with_name(left.name[1:].rpartition(".making-")[0])
        with suppress(Timeout, OSError), lock_of(whole).acquire(timeout=0):
            freed += _size(left)
            shutil.rmtree(left)
    return freed


def lock_of(folder: Path) -> FileLock:
    """Held while a folder is written or removed."""
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _kept(folder: Path) -> KeptFolder:
    sources, used_s = tuple[Path, ...](), folder.stat().st_mtime
    with suppress(AttributeError, KeyError, OSError, TypeError, ValueError):
        note: Any = json.loads(_note(folder).read_text(encoding="utf-8"))
        sources, used_s = tuple(map(Path, note["sources"])), _note(folder).stat().st_mtime
    return KeptFolder(folder, _size(folder), origin_of(folder), sources, used_s)


def _note(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.source.json")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
