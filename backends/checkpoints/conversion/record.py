"""probewire.json beside a converted folder's config: what it was made from, and which files it must have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .kind import Kind

__all__ = ["RECORD", "Source", "is_whole", "key_of", "origin_of", "sources_hash", "write_record"]

RECORD = "probewire.json"
_VERSION = 1
"""Goes up when the same sources are written in another way."""


@dataclass(frozen=True, slots=True)
class Source:
    """One folder that a conversion read."""

    name: str
    """Hugging Face id, or the folder's name: never a path of the machine."""
    files: Mapping[str, tuple[int, str]]
    """File name -> bytes, and sha256 of the contents."""


def key_of(kind: Kind, dtype: str, sources: list[Source]) -> str:
    """What a conversion's result depends on, wherever its sources lie."""
    text = json.dumps([_VERSION, kind, dtype, _of_contents(sources)])
    return hashlib.sha256(text.encode()).hexdigest()


def write_record(folder: Path, kind: Kind, dtype: str, sources: list[Source], *, stored: str = "") -> None:
    """Write the record of a folder that has all its other files. `stored`: its kind in more words, for who reads it."""
    content = {
        "made_by": "probewire convert",
        "version": _VERSION,
        "kind": kind,
        "stored": stored or kind,
        "dtype": dtype,
        "sources": [
            {
                "name": source.name,
                "files": {name: {"bytes": size, "sha256": sha} for name, (size, sha) in source.files.items()},
            }
            for source in sources
        ],
        "sources_sha256": _of_contents(sources),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Whether every file that was written is there at its full length."""
    try:
        files: dict[str, int] = _read(folder)["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return False


def sources_hash(folder: Path) -> str:
    """What a converted folder was made from, in one hash; empty for a folder that was not converted."""
    try:
        return str(_read(folder)["sources_sha256"])
    except (KeyError, OSError, TypeError, ValueError):
        return ""


def origin_of(folder: Path) -> str:
    """How the sources of a converted folder were stored, and their names; empty for a folder that was not converted."""
    try:
        record = _read(folder)
        names = " on ".join(str(source["name"]) for source in record["sources"])
        return f"{record.get('stored') or record['kind']}: {names}"
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return ""


def _read(folder: Path) -> Any:
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


def _of_contents(sources: list[Source]) -> str:
    entries = [sorted((name, size, sha) for name, (size, sha) in source.files.items()) for source in sources]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
