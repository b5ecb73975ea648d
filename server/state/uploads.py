"""Files of SAEs and variants that arrive in parts: a file each in the state folder, until it is loaded or nobody has added to it for long.

A file is named after the SHA-256 that it will have once it is whole. So what was begun is gone on with after a broken
connection, a part that comes twice does no harm, and a file that is not what was sent is never loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Collection
from pathlib import Path
from threading import RLock

from ...protos.errors import InvalidArgument, NotFound, ResourceExhausted
from ...protos.saes import SaePart
from ..auth.users import User
from .database import ORPHAN_S

__all__ = ["Uploads"]

MAX_UPLOADS = 8
"""Files that one user may have sent and not loaded."""
IDLE_S = 60.0
"""After so long without a part a file makes room for others of its owner."""


class Uploads:
    """Of every user, in one folder. Used from several threads; gateway and workers may use the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = RLock()
        self._announced: dict[Path, int] = {}
        """What each file will take: two that do not fit together shall not both be sent halfway."""

    def append(self, user: User, part: SaePart) -> int:
        """Add a part where it begins at the end of what there is; how many bytes there are now.

        A part that begins elsewhere changes nothing: its sender goes on from the number that comes back.
        """
        path = self._path(user, part.upload)
        with self._lock:
            size = _size(path)
            if part.offset != size or not part.data:
                return size
            if not size:
                self._check_count(user, part.upload)
            try:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                with path.open("r+b" if size else "wb") as file:
                    file.seek(size)
                    file.write(part.data)
                    self._announced[path] = part.n_bytes
                    return file.tell()
            except FileNotFoundError:  # forgotten this moment, by a worker
                return 0
            except OSError as error:
                raise ResourceExhausted(f"the file could not be kept on the server: {error.strerror}") from None

    def _check_count(self, user: User, upload: str) -> None:
        if len(self._of(user)) >= MAX_UPLOADS and not self.forget_idle(user, but=(upload,)):
            raise ResourceExhausted(
                f"{user.name} is sending {MAX_UPLOADS} files at once, the most allowed; load one that is all there, or wait"
            )

    def size(self, user: User, upload: str) -> int:
        """How much of a file there is."""
        return _size(self._path(user, upload))

    def read(self, user: User, upload: str) -> bytes:
        """All of a file. Raises NotFound, or InvalidArgument (and forgets it) when it is not the one that was announced."""
        try:
            data = self._path(user, upload).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"no file with the SHA-256 {upload} were sent, or too long ago; send them again") from None
        except OSError as error:
            raise ResourceExhausted(f"the file that was sent cannot be read: {error.strerror}; try again") from None
        if hashlib.sha256(data).hexdigest() != upload:
            self.forget(user, upload)
            raise InvalidArgument(
                f"the {len(data):,} bytes that were sent have not the SHA-256 {upload}: they are damaged or not all; "
                "they are forgotten, send them again"
            )
        return data

    def forget(self, user: User, upload: str) -> None:
        """Delete a file, if there is one."""
        self._forget(self._path(user, upload))

    def forget_idle(self, user: User, *, but: Collection[str]) -> int:
        """Delete what a user has sent, wholly or not, and left for a minute; how many files."""
        return self._forget_older(IDLE_S, [path for path in self._of(user) if path.name not in but])

    def purge(self) -> None:
        """Forget what nobody has added to for an hour."""
        self._forget_older(ORPHAN_S, list(self._folder.glob("*/*")))
        for folder in self._folder.glob("*"):
            with contextlib.suppress(OSError):  # there are files in it
                folder.rmdir()

    def n_bytes(self, user: User | None = None, *, but: tuple[User, Collection[str]] | None = None) -> int:
        """Announced and not loaded: by one user, or (None) by all; save some files of a user."""
        found = self._folder.glob("*/*") if user is None else self._of(user)
        left_out = set[Path]() if but is None else {self._path(but[0], upload) for upload in but[1]}
        return sum(max(_size(path), self._announced.get(path, 0)) for path in found if path not in left_out)

    def _forget_older(self, age_s: float, paths: list[Path]) -> int:
        old = [path for path in paths if _written_s(path) < time.time() - age_s]
        for path in old:
            self._forget(path)
        return len(old)

    def _forget(self, path: Path) -> None:
        self._announced.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def _of(self, user: User) -> list[Path]:
        return list(self._path(user, "").parent.glob("*"))

    def _path(self, user: User, upload: str) -> Path:
        owner = hashlib.sha256(user.name.encode()).hexdigest()[:32]  # names may differ in case alone
        return self._folder / owner / (upload or "-")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
