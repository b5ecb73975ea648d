"""A report as two files: JSON for programs, a page for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

from ..page import page

__all__ = ["FORMAT_VERSION", "hashes", "report_page", "saved"]

FORMAT_VERSION = 1
Kind = Literal["risk", "validation"]
_TITLES = {"risk": "Risk report", "validation": "Validation report"}
_TEXTS = ("text", "prompt", "before", "after")
"""Keys whose values are what somebody wrote or a model said."""


def saved(kind: Kind, data: Mapping[str, Any], folder: Path, *, texts: bool = True) -> Path:
    """Write `kind`.json and `kind`.html; without `texts` prompts and answers stand in neither."""
    told = data if texts else _without_texts(data)
    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / f"{kind}.json").write_text(written, encoding="utf-8")
    report_page(kind, told, folder / f"{kind}.html")
    return folder


def report_page(kind: Kind, data: Mapping[str, Any], path: Path | None = None) -> str:
    """The page of a report's JSON: one file that asks the network for nothing."""
    name = data["variant"]["name"] or data["variant"]["hash"][:12] or "hooks"
    return page(__package__ or "probewire.analysis.reports", "report", f"{_TITLES[kind]}: {name}", data, path)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the reports that a folder holds, by file, for a variant's manifest."""
    files = [folder / f"{kind}.json" for kind in _TITLES]
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def _without_texts(value: Any) -> Any:
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Any]", value)
        return {k: _without_texts(v) for k, v in given.items() if not (k in _TEXTS and isinstance(v, str))}
    return [_without_texts(one) for one in cast("list[Any]", value)] if isinstance(value, list) else value
