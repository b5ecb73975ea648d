"""The sets that ship with the package: one JSON file each, with its provenance and its halves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...protos.errors import NotFound

__all__ = ["DataSet", "load_set", "set_names"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class DataSet:
    """A set of texts: `data` as its file holds it, without name, description and provenance.

    `sha256` is of the file's bytes: manifests and reports name it, so that a figure says what it was measured on.
    """

    name: str
    description: str
    provenance: str
    data: Mapping[str, Any]
    sha256: str


def set_names() -> tuple[str, ...]:
    """The names of the sets that ship."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def load_set(name: str) -> DataSet:
    """A set that ships with the package. Raises NotFound with the names there are."""
    if name not in set_names():
        raise NotFound(f"there is no set {name!r}; there are {', '.join(set_names())}")
    raw = (_FOLDER / f"{name}.json").read_bytes()
    document: dict[str, Any] = json.loads(raw)
    described = {key: str(document.pop(key)) for key in ("name", "description", "provenance")}
    return DataSet(**described, data=document, sha256=sha256(raw).hexdigest())
