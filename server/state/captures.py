"""Captures kept for later patching: a safetensors file each, and a row in the state database that owns it.

A file is written aside, flushed to the disk and renamed before its row is made, so a row never names half a file;
its checksum is compared whenever it is read. Gateway and workers use the same store, each through its own `State`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import safetensors
from safetensors import SafetensorError
from safetensors.numpy import save

from ...protos.errors import Internal, NotFound, ProbewireError, ResourceExhausted
from ...protos.model import StoredCapture
from ...protos.tensors import Array, Tensor
from ...protos.wire.codec import from_json, to_json
from .database import ORPHAN_S, State, write_whole

__all__ = ["CaptureStore", "Kept", "Reservation"]

log = logging.getLogger(__name__)

_st: Any = safetensors  # not annotated


@dataclass(frozen=True, slots=True)
class Kept:
    """One capture on its way into the store."""

    model: str
    site: str
    input: str
    positions: tuple[int, ...]
    array: Array
    variants: tuple[str, ...] = ()
    """Hashes of those that it was made with."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room set aside for a request's captures."""

    id: str
    owner: str


class CaptureStore:
    """Stored captures of every user. Used from several threads."""

    def __init__(self, state: State, *, max_bytes: int, ttl_s: float) -> None:
        self.max_bytes, self.ttl_s = max_bytes, ttl_s
        """Of all users together; and how long a capture is kept, in seconds."""
        self._state = state
        self._folder = state.captures
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="captures")
        self._clear_leftovers()

    # ---- room ----

    def used_bytes(self, owner: str | None = None) -> int:
        """Bytes held and reserved, by one owner or by all."""
        clause, values = ("WHERE owner=?", (owner,)) if owner is not None else ("", ())
        total = 0
        for table in ("captures", "reservations"):
            [(found,)] = self._state.rows(f"SELECT COALESCE(SUM(bytes), 0) FROM {table} {clause}", *values)  # noqa: S608  constants
            total += found
        return total

    def reserve(self, owner: str, n_bytes: int, owner_max_bytes: int) -> Reservation | None:
        """Set room aside before a request starts. Raises ResourceExhausted when there is not enough."""
        if n_bytes == 0:
            return None
        self.purge()
        reservation = Reservation(secrets.token_hex(8), owner)
        with self._state.transaction() as database:
            self._check_room(n_bytes, self.used_bytes(owner), owner_max_bytes, f"of {owner}'s")
            self._check_room(n_bytes, self.used_bytes(), self.max_bytes, "of the box's")
            row = (reservation.id, owner, n_bytes, os.getpid())
            database.execute("INSERT INTO reservations VALUES (?,?,?,?)", row)
        return reservation

    def _check_room(self, n_bytes: int, used: int, limit: int, whose: str) -> None:
        if limit and used + n_bytes > limit:
            raise ResourceExhausted(
                f"storing this would take {n_bytes:,} bytes, and {used:,} {whose} {limit:,} are in use; "
                "delete captures, store fewer sites or positions, or ask for a higher limit"
            )

    def release(self, reservation: Reservation | None) -> None:
        """Undo `reserve`, once the captures are put or the request has ended."""
        if reservation is not None:
            with self._state.transaction() as database:
                database.execute("DELETE FROM reservations WHERE id=?", (reservation.id,))

    # ---- in ----

    def put_later(
        self, owner: str, captures: Sequence[Kept], done: Callable[[tuple[StoredCapture, ...] | ProbewireError], None]
    ) -> None:
        """Store on the store's own thread, all or nothing, and say so there."""

        def work() -> None:
            stored: list[StoredCapture] = []
            try:
                stored.extend(self.put(owner, kept) for kept in captures)
            except Exception as error:  # noqa: BLE001 - told to the one who waits
                for item in stored:
                    with contextlib.suppress(ProbewireError):
                        self.delete(owner, item.id)
                done(error if isinstance(error, ProbewireError) else _failed(error))
            else:
                done(tuple(stored))

        self._writer.submit(work)

    def put(self, owner: str, kept: Kept) -> StoredCapture:
        """Keep an array under a new id that cannot be guessed. Raises ResourceExhausted when the disk is full."""
        tensor, now = Tensor.of(kept.array), time.time()
        item = StoredCapture(
            id=f"cap-{secrets.token_urlsafe(12)}",
            site=kept.site,
            input=kept.input,
            positions=kept.positions,
            dtype=tensor.dtype,
            shape=tensor.shape,
            model=kept.model,
            created_s=now,
            expires_s=now + self.ttl_s,
            variants=kept.variants,
        )
        meta = orjson.dumps(to_json(item)).decode()
        data = save({kept.site: np.asarray(kept.array, order="C")}, {"owner": owner, "probewire": meta})
        path = self._path(item.id)
        try:
            write_whole(path, data)
            row = (item.id, owner, kept.model, meta, len(data), zlib.crc32(data), now, item.expires_s)
            with self._state.transaction() as database:
                database.execute("INSERT INTO captures VALUES (?,?,?,?,?,?,?,?)", row)
        except (OSError, ProbewireError) as error:
            path.unlink(missing_ok=True)
            raise _failed(error) if isinstance(error, OSError) else error from None
        return item

    # ---- out ----

    def list(self, owner: str, model: str = "") -> list[StoredCapture]:
        """What an owner keeps, oldest first; of one model, or of all."""
        rows = self._state.rows(
            "SELECT meta FROM captures WHERE owner=? AND expires_s>? AND (?='' OR model=?) ORDER BY created_s, rowid",
            *(owner, time.time(), model, model),
        )
        return [from_json(StoredCapture, orjson.loads(meta)) for (meta,) in rows]

    def get_item(self, owner: str, capture_id: str) -> tuple[StoredCapture, Tensor]:
        """One capture. Raises NotFound when it is not there or not the owner's, Internal when its file is damaged."""
        item, size, crc = self._row(owner, capture_id)
        try:
            data = self._path(capture_id).read_bytes()
            if (len(data), zlib.crc32(data)) != (size, crc):
                raise ValueError(f"{len(data)} bytes where {size} were written, or other ones")
            [(_, found)] = _st.deserialize(data)
        except (OSError, ValueError, SafetensorError) as error:
            log.error("stored capture %s: %s", capture_id, error)
            raise Internal(
                f"the file of stored capture {capture_id!r} is damaged; delete it and capture again"
            ) from None
        return item, Tensor(item.dtype, item.shape, bytes(found["data"]))

    def _row(self, owner: str, capture_id: str) -> tuple[StoredCapture, int, int]:
        found = self._state.rows(
            "SELECT meta, bytes, crc FROM captures WHERE id=? AND owner=? AND expires_s>?",
            *(capture_id, owner, time.time()),
        )
        if not found:
            raise NotFound(f"no stored capture {capture_id!r}; it was deleted, has expired, or never was")
        meta, size, crc = found[0]
        return from_json(StoredCapture, orjson.loads(meta)), size, crc

    def of(self, owner: str) -> Mapping[str, Array]:
        """An owner's captures as a mapping, id → array, read when asked for."""
        return _Owned(self, owner)

    def has(self, owner: str, capture_id: str) -> bool:
        """Whether an owner keeps a capture."""
        with contextlib.suppress(NotFound):
            self._row(owner, capture_id)
            return True
        return False

    # ---- away ----

    def delete(self, owner: str, capture_id: str) -> None:
        """Forget one. Raises NotFound."""
        self._row(owner, capture_id)
        self._forget([capture_id])

    def purge(self) -> int:
        """Forget what has expired; gives how many."""
        expired = [row[0] for row in self._state.rows("SELECT id FROM captures WHERE expires_s<=?", time.time())]
        self._forget(expired)
        return len(expired)

    def _forget(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        with self._state.transaction() as database:
            database.executemany("DELETE FROM captures WHERE id=?", [(capture_id,) for capture_id in ids])
        for capture_id in ids:
            self._path(capture_id).unlink(missing_ok=True)

    def _clear_leftovers(self) -> None:
        """What processes that are gone had begun: room set aside, and files that no row names."""
        dead = [row for row in self._state.rows("SELECT id, pid FROM reservations") if not _alive(row[1])]
        if dead:
            with self._state.transaction() as database:
                database.executemany("DELETE FROM reservations WHERE id=?", [(row[0],) for row in dead])
        for draft in self._folder.glob("*.draft"):
            pid = draft.name.split(".")[-2]
            if not pid.isdecimal() or not _alive(int(pid)):
                draft.unlink(missing_ok=True)
        known = {f"{row[0]}.safetensors" for row in self._state.rows("SELECT id FROM captures")}
        for file in self._folder.glob("cap-*.safetensors"):
            if file.name not in known and file.stat().st_mtime < time.time() - ORPHAN_S:
                file.unlink(missing_ok=True)

    def _path(self, capture_id: str) -> Path:
        return self._folder / f"{capture_id}.safetensors"

    def close(self) -> None:
        """Finish what is being written."""
        self._writer.shutdown()


class _Owned(Mapping[str, Array]):
    """One owner's part of the store."""

    def __init__(self, store: CaptureStore, owner: str) -> None:
        self._store, self._owner = store, owner

    def __getitem__(self, capture_id: str) -> Array:
        try:
            return self._store.get_item(self._owner, capture_id)[1].numpy()
        except NotFound:
            raise KeyError(capture_id) from None

    def __contains__(self, capture_id: object) -> bool:
        return isinstance(capture_id, str) and self._store.has(self._owner, capture_id)

    def __iter__(self) -> Iterator[str]:
        return (item.id for item in self._store.list(self._owner))

    def __len__(self) -> int:
        return len(self._store.list(self._owner))


def _failed(error: BaseException) -> ProbewireError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted("the server's disk is full, so nothing was stored; tell who runs the box")
    log.error("a capture could not be stored", exc_info=error)
    return Internal(f"a capture could not be stored: {type(error).__name__}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
