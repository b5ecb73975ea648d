"""Loaded variants: a folder each in the state folder, as `Variant.save` writes them, and a row that says whose it is.

A worker reads one when a request first names it and keeps it in memory from then on, so variants survive restarts and
idle models. Gateway and workers use the same store, each through its own `State`.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import RLock

from ...backends.model.footprint import check_free
from ...protos.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ProbewireError,
    ResourceExhausted,
)
from ...protos.model import ModelInfo
from ...protos.saes import SaePart, SaeReceived
from ...protos.variants.limits import check_limits
from ...protos.variants.stored import StoredFile, VariantInfo, VariantPart, VariantPartRequest
from ...protos.variants.use import VariantUse
from ...protos.variants.variant import Variant
from ..auth.users import User
from ..config import RequestLimits
from .database import ORPHAN_S, State, write_whole
from .room import Room
from .uploads import Uploads
from .variant_rows import ResolvedVariant, VariantRow, VariantRows

__all__ = ["VariantStore"]

MEMORY_BYTES = 1 << 30
"""Deltas that a worker keeps ready beside those on its device; others are read again when they are named."""
PART_BYTES = 2 << 20
"""Of a file that is read back: what an answer holds on every way there is."""
READING = 3
"""So many times its bytes a file takes while it is read."""


class VariantStore:
    """Variants of every user. Used from several threads."""

    def __init__(self, state: State, uploads: Uploads, limits: RequestLimits) -> None:
        """`uploads`: what was sent in parts, of SAEs too."""
        self._state, self.uploads, self._limits = state, uploads, limits
        self._rows = VariantRows(state)
        self._room = Room(state, uploads, limits.max_store_bytes)
        self._ready: OrderedDict[str, Variant] = OrderedDict()
        self._lock, self._sending = RLock(), RLock()
        self._clear_leftovers()

    # ---- what requests need ----

    def resolve(self, uses: Sequence[VariantUse], user: User, info: ModelInfo) -> tuple[ResolvedVariant, ...]:
        """What a request's names stand for now, in their order.

        Raises NotFound with the names there are, InvalidArgument for one that stands for several, FailedPrecondition for one of
        another model.
        """
        return tuple(self._resolved(use, user, info) for use in uses)

    def _resolved(self, use: VariantUse, user: User, info: ModelInfo) -> ResolvedVariant:
        row = self._rows.find(user, use.name, info.id)
        if row.model_hash != info.model_hash:
            raise FailedPrecondition(
                f"variant {use.name!r} is of model {row.model_hash[:16]}…, which was served as {info.id!r} before; it is "
                f"{info.model_hash[:16]}… now: load the variant again with rebase=True"
            )
        return ResolvedVariant(
            row.info.name, self._variant(row), row.info.version, row.info.hash, row.info.owner, use.scale, use.where
        )

    def _variant(self, row: VariantRow) -> Variant:
        """Ready in memory, or read and held against its hash."""
        with self._lock:
            if row.key in self._ready:
                self._ready.move_to_end(row.key)
                return self._ready[row.key]
        try:
            variant = Variant.of_files(self._files(row), f"the variant {row.info.name!r}")
            if variant.hash != row.info.hash:
                raise InvalidArgument(f"its content is {variant.hash[:16]}…")
        except (ProbewireError, OSError) as error:
            if not self._rows.has(row.key):
                raise NotFound(f"variant {row.info.name!r} was unloaded this moment") from None
            raise Internal(
                f"the files of variant {row.info.name!r} (version {row.info.version}) are damaged, so it is not served: {error}; "
                "unload it, and load it again"
            ) from None
        with self._lock:
            return self._keep(row.key, variant)

    def _files(self, row: VariantRow) -> dict[str, bytes]:
        folder = self._state.variants / row.key
        return {file.name: (folder / file.name).read_bytes() for file in row.info.files}

    # ---- coming and going ----

    def receive(self, user: User, part: SaePart) -> SaeReceived:
        """Take a part of a file. Raises ResourceExhausted where the whole would pass a limit. Of a file that the user has
        in a loaded variant, nothing need be sent.
        """
        self.check_size(part.n_bytes)
        if self._rows.file(user, part.upload) is not None:
            return SaeReceived(part.n_bytes)
        with self._sending:
            self._room.check(user, part.n_bytes, (part.upload,), "the variant", "compress it")
            return SaeReceived(self.uploads.append(user, part))

    def sent(self, user: User, upload: str) -> bytes:
        """A file by its SHA-256: sent in parts, or of a variant that the user has loaded. Raises NotFound, InvalidArgument."""
        check_free(READING * self.uploads.size(user, upload), "reading the variant that was sent")
        try:
            return self.uploads.read(user, upload)
        except NotFound:
            found = self._rows.file(user, upload)
            if found is None:
                raise
        data = (self._state.variants / found).read_bytes()
        if hashlib.sha256(data).hexdigest() != upload:
            raise Internal(f"the file with the SHA-256 {upload} is damaged; unload its variant, and load it again")
        return data

    def check_size(self, n_bytes: int) -> None:
        """Raise InvalidArgument for a variant that is too large."""
        if n_bytes > self._limits.max_variant_bytes:
            raise InvalidArgument(
                f"the variant has {n_bytes:,} bytes; at most {self._limits.max_variant_bytes:,} fit: compress it, or load it as a model"
            )

    def put(
        self, user: User, variant: Variant, info: ModelInfo, *, shared: bool, told: str, uploads: Sequence[str] = ()
    ) -> VariantInfo:
        """Keep a variant of this model under its name, as the next version of that; the same content again is no new one.

        Raises ResourceExhausted past a limit, InvalidArgument for a rank or size beyond what is served.
        """
        check_limits(variant)
        files = variant.files()
        self.check_size(sum(map(len, files.values())))
        item = _info(user, variant, info, files, shared=shared, told=told)
        key = f"variant-{secrets.token_hex(8)}"
        folder = self._state.variants / key
        folder.mkdir(mode=0o700)
        try:
            for name, data in files.items():
                write_whole(folder / name, data)
            with self._state.transaction():
                there = self._rows.same(user, item)
                if there is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    return self._rows.share(there, shared=shared)
                self._check_counts(user)
                self._room.check(user, item.n_bytes, uploads, "the variant", "compress it")
                item = self._rows.insert(key, item)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise ResourceExhausted(f"the variant could not be kept on the server: {error.strerror}") from None
            raise
        with self._lock:
            self._keep(key, variant)
        return item

    def _check_counts(self, user: User) -> None:
        for limit, whose, owner in (
            (self._limits.max_variants, f"{user.name} has", user.name),
            (self._limits.max_all_variants, "the box has", ""),
        ):
            if (n := self._rows.count(owner)) >= limit:
                raise ResourceExhausted(f"{whose} {n} variants loaded, the most allowed; unload one first")

    def delete(self, user: User, name: str, model: str = "") -> VariantInfo:
        """Forget one version, or (without @version) all of a name; gives the last of them. Raises NotFound, PermissionDenied."""
        rows = self._rows.to_delete(user, name, model)
        foreign = [row for row in rows if row.info.owner != user.name and user.role != "admin"]
        if foreign:
            raise PermissionDenied(
                f"variant {name!r} belongs to {foreign[0].info.owner}; only its owner or an admin may unload it"
            )
        self._rows.delete([row.key for row in rows])
        for row in rows:
            shutil.rmtree(self._state.variants / row.key, ignore_errors=True)
            with self._lock:
                self._ready.pop(row.key, None)
        return rows[-1].info

    # ---- sight ----

    def list(self, user: User, model: str = "") -> list[VariantInfo]:
        """A user's own, and those that are shared; of one model, or of all. An admin sees everybody's."""
        rows = self._rows.all(model) if user.role == "admin" else self._rows.visible(user, model)
        return [row.info for row in rows]

    def get(self, user: User, name: str, model: str = "") -> VariantInfo:
        """One that a user may use. Raises NotFound."""
        return self._rows.find(user, name, model).info

    def part(self, user: User, request: VariantPartRequest) -> VariantPart:
        """Bytes of a file, from an offset on. Raises NotFound, InvalidArgument for an offset past its end."""
        row = self._rows.find(user, request.name, request.model)
        file = next((file for file in row.info.files if file.name == request.file), None)
        if file is None:
            known = ", ".join(file.name for file in row.info.files)
            raise NotFound(f"variant {request.name!r} has no file {request.file[:80]!r}; it has {known}")
        if request.offset > file.n_bytes:
            raise InvalidArgument(f"{request.file} has {file.n_bytes:,} bytes, so none from {request.offset:,} on")
        try:
            with (self._state.variants / row.key / file.name).open("rb") as opened:
                opened.seek(request.offset)
                return VariantPart(file.n_bytes, request.offset, opened.read(PART_BYTES))
        except OSError:
            raise Internal(f"the files of variant {request.name!r} are damaged; unload it, and load it again") from None

    # ---- upkeep ----

    def _keep(self, key: str, variant: Variant) -> Variant:
        variant = self._ready.setdefault(key, variant)
        self._ready.move_to_end(key)
        while len(self._ready) > 1 and sum(one.n_bytes for one in self._ready.values()) > MEMORY_BYTES:
            self._ready.popitem(last=False)
        return variant

    def _clear_leftovers(self) -> None:
        """Folders that no row names were left by a process that died between the two."""
        known = self._rows.keys()
        for folder in self._state.variants.glob("variant-*"):
            with contextlib.suppress(OSError):
                if folder.name not in known and folder.stat().st_mtime < time.time() - ORPHAN_S:
                    shutil.rmtree(folder)


def _info(
    user: User, variant: Variant, info: ModelInfo, files: Mapping[str, bytes], *, shared: bool, told: str
) -> VariantInfo:
    return VariantInfo(
        name=variant.manifest.name,
        version=1,
        hash=variant.hash,
        model=info.id,
        model_hash=info.model_hash,
        owner=user.name,
        shared=shared,
        method=variant.manifest.method,
        description=variant.manifest.description,
        weights=tuple(variant.deltas),
        max_rank=max((delta.rank for delta in variant.deltas.values()), default=0),
        n_hooks=len(variant.plan.hooks),
        n_bytes=sum(map(len, files.values())),
        source=told,
        created_s=time.time(),
        files=tuple(StoredFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()),
    )
