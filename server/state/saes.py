"""Loaded SAEs: a folder each in the state folder, as sae-lens saves them, and a row that says whose it is and where it acts.

A worker reads an SAE when a hook first names it and keeps it in memory from then on, so SAEs survive restarts and
unloading. Gateway and workers use the same store, each through its own `State`.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import RLock

import orjson

from ...backends.model.footprint import check_free
from ...backends.saes import Sae, SaeSource, read_folder
from ...backends.saes.files import CONFIG_FILE, READING, WEIGHTS_FILE
from ...protos.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from ...protos.model import ModelInfo
from ...protos.saes import SaeInfo, SaePart, SaeReceived
from ...protos.wire.codec import from_json, to_json
from ..auth.users import User
from .database import ORPHAN_S, State, write_whole
from .room import Room
from .uploads import Uploads

__all__ = ["SaeStore"]

MEMORY_BYTES = 8 << 30
"""Weights that a worker keeps ready; beyond it those used longest ago are read again when they are named."""


class SaeStore:
    """SAEs of every user. Used from several threads."""

    def __init__(self, state: State, *, max_bytes: int, max_saes: int, max_all_bytes: int = 0) -> None:
        """`max_bytes`: of one SAE's weights. `max_saes`: of one user. `max_all_bytes`: of all users' (0: no bound)."""
        self.max_bytes, self.max_saes = max_bytes, max_saes
        self._state = state
        self._seen = -1
        self._ready: OrderedDict[str, Sae] = OrderedDict()
        self._lock, self._sending = RLock(), RLock()
        self.uploads = Uploads(state.uploads)
        """What was sent in parts and is not loaded yet."""
        self._room = Room(state, self.uploads, max_all_bytes)
        self._clear_leftovers()

    def receive(self, user: User, part: SaePart) -> SaeReceived:
        """Take a part of an SAE's weights. Raises ResourceExhausted where the whole of it would pass a limit.

        Of one that the user has loaded already, nothing need be sent.
        """
        self.check_size(part.n_bytes)
        if self._loaded(user, part.upload) is not None:
            return SaeReceived(part.n_bytes)
        with self._sending:
            self._room.check(user, part.n_bytes, (part.upload,), "the SAE", "save it in a narrower dtype")
            return SaeReceived(self.uploads.append(user, part))

    def sent(self, user: User, upload: str) -> bytes:
        """Weights by their SHA-256: sent in parts, or of an SAE that the user has loaded.

        Raises NotFound, InvalidArgument for what is not all there, FailedPrecondition for what memory cannot hold.
        """
        check_free(READING * self.uploads.size(user, upload), "reading the SAE that was sent")
        try:
            return self.uploads.read(user, upload)
        except NotFound:
            found = self._loaded(user, upload)
            if found is None:
                raise
        source = read_folder(found, self.max_bytes)
        if source.hash != upload:
            raise Internal(f"the files of the SAE with the SHA-256 {upload} are damaged; unload it, and load it again")
        return source.weights

    def _loaded(self, user: User, upload: str) -> Path | None:
        rows = self._rows(user.name, "")
        key = next((key for key, _, item in rows if item.owner == user.name and item.hash == upload), None)
        return None if key is None else self._state.saes / key

    def check_size(self, n_bytes: int) -> None:
        """Raise InvalidArgument for an SAE's file that is too large."""
        if n_bytes > self.max_bytes:
            raise InvalidArgument(f"the SAE has {n_bytes:,} bytes; at most {self.max_bytes:,} fit")

    def put(self, user: User, source: SaeSource, sae: Sae, info: ModelInfo, *, shared: bool, told: str) -> SaeInfo:
        """Keep an SAE under a name. Raises FailedPrecondition when the name is taken, ResourceExhausted past a limit."""
        item = SaeInfo(
            name=sae.name,
            model=info.id,
            site=str(sae.site),
            architecture=sae.architecture,
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            k=sae.k,
            dtype=sae.dtype,
            hash=sae.hash,
            shared=shared,
            owner=user.name,
            source=told,
            n_bytes=sae.n_bytes,
            created_s=time.time(),
            own_site=sae.own_site,
        )
        key = f"sae-{secrets.token_hex(8)}"
        folder = self._state.saes / key
        folder.mkdir(mode=0o700)
        try:
            write_whole(folder / CONFIG_FILE, source.config_text)
            write_whole(folder / WEIGHTS_FILE, source.weights)
            row = (
                key,
                user.name,
                int(shared),
                info.id,
                info.model_hash,
                sae.name,
                orjson.dumps(to_json(item)).decode(),
            )
            with self._state.transaction() as database:
                self._check(user, item)
                database.execute("INSERT INTO saes VALUES (?,?,?,?,?,?,?)", row)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise ResourceExhausted(f"the SAE could not be kept on the server: {error.strerror}") from None
            raise
        with self._lock:
            self._keep(key, sae)
        return item

    def _check(self, user: User, item: SaeInfo) -> None:
        taken = next((i for _, _, i in self._rows(user.name, item.model) if i.name == item.name), None)
        if taken is not None:
            whose = "you have" if taken.owner == user.name else f"{taken.owner} shares"
            raise FailedPrecondition(
                f"{whose} an SAE {item.name!r} on {item.model} (at {taken.site}); unload it first, or choose another name"
            )
        [(n,)] = self._state.rows("SELECT COUNT(*) FROM saes WHERE owner=?", user.name)
        if n >= self.max_saes:
            raise ResourceExhausted(f"{user.name} has {n} SAEs loaded, the most allowed; unload one first")
        self._room.check(user, item.n_bytes, (item.hash,), "the SAE", "load it in a narrower dtype")

    def list(self, user: User, model: str = "") -> list[SaeInfo]:
        """A user's own, and those that are shared; of one model, or of all. An admin sees everybody's."""
        rows = self._all(model) if user.role == "admin" else self._rows(user.name, model)
        return [item for _, _, item in rows]

    def names(self, user: User, model: str) -> list[str]:
        """What a user may name in hooks: their own, and those that are shared."""
        return list(dict.fromkeys(item.name for _, _, item in self._rows(user.name, model)))

    def of(self, user: User, info: ModelInfo) -> Mapping[str, Sae]:
        """What a user may name in hooks on a model."""
        return _Visible(self, user, info)

    def get(self, user: User, name: str, info: ModelInfo) -> Sae:
        """One of them, ready. Raises KeyError when there is none, FailedPrecondition when it is of another model."""
        found = next((row for row in self._rows(user.name, info.id) if row[2].name == name), None)
        if found is None:
            raise KeyError(name)
        key, model_hash, item = found
        if model_hash != info.model_hash:
            raise FailedPrecondition(
                f"SAE {name!r} was loaded onto another model that was served as {info.id!r}; unload it, and load it again"
            )
        with self._lock:
            self._forget_unloaded()
            if key in self._ready:
                self._ready.move_to_end(key)
                return self._ready[key]
        try:
            sae = read_folder(self._state.saes / key, self.max_bytes).load(item.name, item.site, item.dtype, info)
        except (NotFound, InvalidArgument, OSError):
            if any(row[0] == key for row in self._all()):
                raise Internal(f"the files of SAE {name!r} are damaged; unload it, and load it again") from None
            raise KeyError(name) from None  # unloaded meanwhile
        with self._lock:
            return self._keep(key, sae)

    def delete(self, user: User, name: str, model: str) -> SaeInfo:
        """Forget one. Raises NotFound, PermissionDenied for another user's."""
        seen = self._all(model) if user.role == "admin" else self._rows(user.name, model)
        found = [row for row in seen if row[2].name == name]
        found = [row for row in found if row[2].owner == user.name] or found
        if not found:
            known = ", ".join(item.name for _, _, item in self._rows(user.name, model)) or "none"
            raise NotFound(f"no SAE {name!r} is loaded for you{f' on {model}' if model else ''}; loaded: {known}")
        if len(found) > 1:
            where = ", ".join(f"{item.model} ({item.owner}'s)" for _, _, item in found)
            raise InvalidArgument(f"SAE {name!r} is loaded several times: {where}; name the model")
        [(key, _, item)] = found
        if item.owner != user.name and user.role != "admin":
            raise PermissionDenied(f"SAE {name!r} belongs to {item.owner}; only its owner or an admin may unload it")
        with self._state.transaction() as database:
            database.execute("DELETE FROM saes WHERE key=?", (key,))
        shutil.rmtree(self._state.saes / key, ignore_errors=True)
        with self._lock:
            self._ready.pop(key, None)
        return item

    def _forget_unloaded(self) -> None:
        """Let go of weights whose rows another process has deleted."""
        if (changes := self._state.changes) != self._seen:
            self._seen = changes
            known = {row[0] for row in self._state.rows("SELECT key FROM saes")}
            for gone in [key for key in self._ready if key not in known]:
                del self._ready[gone]

    def _clear_leftovers(self) -> None:
        """Folders that no row names were left by a process that died between the two; files were sent, and never loaded."""
        self.uploads.purge()
        known = {row[0] for row in self._state.rows("SELECT key FROM saes")}
        for folder in self._state.saes.glob("sae-*"):
            with contextlib.suppress(OSError):
                if folder.name not in known and folder.stat().st_mtime < time.time() - ORPHAN_S:
                    shutil.rmtree(folder)

    def _keep(self, key: str, sae: Sae) -> Sae:
        sae = self._ready.setdefault(key, sae)
        self._ready.move_to_end(key)
        while len(self._ready) > 1 and sum(s.n_bytes for s in self._ready.values()) > MEMORY_BYTES:
            self._ready.popitem(last=False)
        return sae

    def _all(self, model: str = "") -> list[tuple[str, str, SaeInfo]]:
        rows = self._state.rows(
            "SELECT key, model_hash, meta FROM saes WHERE (?='' OR model=?) ORDER BY rowid", model, model
        )
        return [(key, model_hash, from_json(SaeInfo, orjson.loads(meta))) for key, model_hash, meta in rows]

    def _rows(self, owner: str, model: str) -> list[tuple[str, str, SaeInfo]]:
        """(key, model hash, info), a user's own before those shared with them."""
        rows = self._state.rows(
            "SELECT key, model_hash, meta FROM saes WHERE (owner=? OR shared=1) AND (?='' OR model=?) "
            "ORDER BY owner<>?, rowid",
            *(owner, model, model, owner),
        )
        return [(key, model_hash, from_json(SaeInfo, orjson.loads(meta))) for key, model_hash, meta in rows]


class _Visible(Mapping[str, Sae]):
    """What one user may name on one model."""

    def __init__(self, store: SaeStore, user: User, info: ModelInfo) -> None:
        self._store, self._user, self._info = store, user, info
        self._found: dict[str, Sae] = {}

    def __getitem__(self, name: str) -> Sae:
        if name not in self._found:  # once a request, however many hooks and inputs name it
            self._found[name] = self._store.get(self._user, name, self._info)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._store.names(self._user, self._info.id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.names(self._user, self._info.id))

    def __len__(self) -> int:
        return len(self._store.names(self._user, self._info.id))
