"""Weights of SAEs that arrive in parts: a file each in the state folder, until it is loaded or nobody has added to it for long.

A file is named after the SHA-256 that it will have once it is whole. So what was begun is gone on with after a broken
connection, a part that comes twice does no harm, and a file that is not what was sent is never loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path
from threading import RLock

from ..protos.errors import InvalidArgument, NotFound, ResourceExhausted
from ..protos.saes import SaePart
from .state import ORPHAN_S
from .users import User

__all__ = ["SaeUploads"]

MAX_UPLOADS = 8
"""Files that one user may have sent and not loaded."""


class SaeUploads:
    """Of every user, in one folder. Used from several threads; gateway and workers may use the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = RLock()

    def append(self, user: User, part: SaePart) -> int:
        """Add a part where it begins at the end of what there is; how many bytes there are now.

        A part that begins elsewhere changes nothing: its sender goes on from the number that comes back.
        """
        path = self._path(user, part.upload)
        with self._lock:
            size = _size(path)
            if part.offset != size or not part.data:
                return size
            if not size and len(self._of(user)) >= MAX_UPLOADS:
                raise ResourceExhausted(
                    f"{user.name} has sent {MAX_UPLOADS} SAEs and loaded none of them, the most allowed; load one, or "
                    f"wait: they are forgotten after {ORPHAN_S / 3600:g} h"
                )
            try:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                with path.open("ab") as file:
                    file.write(part.data)
            except OSError as error:
                raise ResourceExhausted(f"the SAE could not be kept on the server: {error.strerror}") from None
            return size + len(part.data)

    def read(self, user: User, upload: str) -> bytes:
        """All of a file. Raises NotFound, or InvalidArgument (and forgets it) when it is not the one that was announced."""
        try:
            data = self._path(user, upload).read_bytes()
        except OSError:
            raise NotFound(
                f"no SAE weights with the SHA-256 {upload} were sent, or too long ago; send them again"
            ) from None
        if hashlib.sha256(data).hexdigest() != upload:
            self.forget(user, upload)
            raise InvalidArgument(
                f"the {len(data):,} bytes that were sent have not the SHA-256 {upload}: they are damaged or not all; "
                "they are forgotten, send them again"
            )
        return data

    def forget(self, user: User, upload: str) -> None:
        """Delete a file, if there is one."""
        with contextlib.suppress(OSError):
            self._path(user, upload).unlink(missing_ok=True)

    def n_bytes(self, user: User | None = None, *, but: str = "") -> int:
        """Sent and not loaded: by one user, or (None) by all, save one file."""
        found = self._folder.glob("*/*") if user is None else self._of(user)
        return sum(_size(path) for path in found if path.name != but)

    def purge(self) -> None:
        """Forget what nobody has added to for an hour."""
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - ORPHAN_S:
                    path.unlink()

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
