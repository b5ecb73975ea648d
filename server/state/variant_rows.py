"""Rows of variants: whose they are, and which of them a name stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from ...protos.errors import InvalidArgument, NotFound
from ...protos.hooks import Where
from ...protos.variants.stored import VariantInfo
from ...protos.variants.use import VariantUse
from ...protos.variants.variant import Variant
from ...protos.wire.codec import from_json, to_json
from ..auth.users import User
from .database import State

__all__ = ["ResolvedVariant", "VariantRow", "VariantRows"]

HASH = "sha256:"


@dataclass(frozen=True, slots=True)
class ResolvedVariant:
    """A variant that inputs of a request run with, and which content its name stood for."""

    name: str
    variant: Variant
    version: int
    hash: str
    owner: str
    scale: float
    where: Where


@dataclass(frozen=True, slots=True)
class VariantRow:
    """A version of a variant as the database has it."""

    key: str
    """Name of its folder."""
    model_hash: str
    info: VariantInfo


class VariantRows:
    """Of one state folder."""

    def __init__(self, state: State) -> None:
        self._state = state

    def find(self, user: User, name: str, model: str = "") -> VariantRow:
        """The one that a name stands for: a user's own before what others share, of a name the latest version.

        Raises NotFound with the names there are, InvalidArgument where it stands for several.
        """
        VariantUse(name)  # says what a name is made of
        seen = self.visible(user, model)
        found = [row for row in seen if _matches(row.info, name)]
        if not name.startswith(HASH) and "/" not in name:
            found = [row for row in found if row.info.owner == user.name] or found
        if not found:
            known = ", ".join(dict.fromkeys(told_name(row.info, user) for row in seen)) or "none"
            raise NotFound(f"no variant {name!r} is loaded for you{f' on {model}' if model else ''}; loaded: {known}")
        owners = dict.fromkeys((row.info.owner, row.info.model) for row in found)
        if len({row.info.hash for row in found}) > 1 and (len(owners) > 1 or name.startswith(HASH)):
            where = ", ".join(f"{owner}/{row_model}" for owner, row_model in owners)
            raise InvalidArgument(
                f"variant {name!r} stands for several: of {where}; name the owner (owner/{name}), the model, or more of the hash"
            )
        return max(found, key=lambda row: (row.info.owner == user.name, row.info.version))

    def to_delete(self, user: User, name: str, model: str) -> list[VariantRow]:
        """The versions that a name stands for, oldest first; an admin's word reaches everybody's. Raises as `find`."""
        VariantUse(name)
        seen = self.all(model) if user.role == "admin" else self.visible(user, model)
        found = [row for row in seen if _matches(row.info, name)]
        if "/" not in name:
            found = [row for row in found if row.info.owner == user.name] or found
        if not found:
            known = ", ".join(dict.fromkeys(told_name(row.info, user) for row in seen)) or "none"
            raise NotFound(f"no variant {name!r} is loaded for you{f' on {model}' if model else ''}; loaded: {known}")
        whose = dict.fromkeys((row.info.owner, row.info.model) for row in found)
        if len(whose) > 1:
            where = ", ".join(f"{owner}'s on {row_model}" for owner, row_model in whose)
            raise InvalidArgument(f"variant {name!r} is loaded several times: {where}; name the model, or owner/{name}")
        return sorted(found, key=lambda row: row.info.version)

    def visible(self, user: User, model: str = "") -> list[VariantRow]:
        """A user's own before those shared with them."""
        return self._read(
            "SELECT key, model_hash, meta FROM variants WHERE (owner=? OR shared=1) AND (?='' OR model=?) "
            "ORDER BY owner<>?, rowid",
            *(user.name, model, model, user.name),
        )

    def all(self, model: str = "") -> list[VariantRow]:
        """Everybody's."""
        return self._read(
            "SELECT key, model_hash, meta FROM variants WHERE (?='' OR model=?) ORDER BY rowid", model, model
        )

    def same(self, user: User, item: VariantInfo) -> VariantRow | None:
        """The latest version of a user's name, if it has this content."""
        rows = self._read(
            "SELECT key, model_hash, meta FROM variants WHERE owner=? AND model=? AND name=? ORDER BY version DESC LIMIT 1",
            *(user.name, item.model, item.name),
        )
        return rows[0] if rows and rows[0].info.hash == item.hash else None

    def insert(self, key: str, item: VariantInfo) -> VariantInfo:
        """Add it as the next version of its name; within a transaction."""
        named = (item.owner, item.model, item.name)
        found = self._state.rows("SELECT last FROM variant_versions WHERE owner=? AND model=? AND name=?", *named)
        item = replace(item, version=1 + (found[0][0] if found else 0))
        with self._state.writing() as database:
            database.execute("INSERT OR REPLACE INTO variant_versions VALUES (?,?,?,?)", (*named, item.version))
            row = (
                *(key, item.owner, int(item.shared), item.model, item.model_hash, item.name, item.version, item.hash),
                _meta(item),
            )
            database.execute("INSERT INTO variants VALUES (?,?,?,?,?,?,?,?,?)", row)
        return item

    def share(self, row: VariantRow, *, shared: bool) -> VariantInfo:
        """Share a version, or no longer; within a transaction."""
        item = replace(row.info, shared=shared)
        with self._state.writing() as database:
            database.execute("UPDATE variants SET shared=?, meta=? WHERE key=?", (int(shared), _meta(item), row.key))
        return item

    def delete(self, keys: Sequence[str]) -> None:
        """Forget rows."""
        with self._state.transaction() as database:
            database.executemany("DELETE FROM variants WHERE key=?", [(key,) for key in keys])

    def file(self, user: User, sha256: str) -> Path | None:
        """Where a user's variants have a file of this hash, below the folder of variants."""
        for row in self._read("SELECT key, model_hash, meta FROM variants WHERE owner=?", user.name):
            for file in row.info.files:
                if file.sha256 == sha256:
                    return Path(row.key) / file.name
        return None

    def count(self, owner: str) -> int:
        """How many a user has; empty: all have."""
        [(n,)] = self._state.rows("SELECT COUNT(*) FROM variants WHERE ?='' OR owner=?", owner, owner)
        return n

    def has(self, key: str) -> bool:
        """Whether it is still loaded."""
        return bool(self._state.rows("SELECT 1 FROM variants WHERE key=?", key))

    def keys(self) -> set[str]:
        """Folders that rows name."""
        return {key for (key,) in self._state.rows("SELECT key FROM variants")}

    def _read(self, query: str, *values: Any) -> list[VariantRow]:
        rows = self._state.rows(query, *values)
        return [
            VariantRow(key, model_hash, from_json(VariantInfo, orjson.loads(meta))) for key, model_hash, meta in rows
        ]


def told_name(item: VariantInfo, user: User) -> str:
    """As a user names it."""
    return item.name if item.owner == user.name else f"{item.owner}/{item.name}"


def _matches(item: VariantInfo, name: str) -> bool:
    if name.startswith(HASH):
        return item.hash.startswith(name.removeprefix(HASH))
    rest, _, version = name.partition("@")
    owner, _, own = rest.rpartition("/")
    return item.name == own and owner in ("", item.owner) and version in ("", str(item.version))


def _meta(item: VariantInfo) -> str:
    return orjson.dumps(to_json(item)).decode()
