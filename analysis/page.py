"""A page that is one HTML file and needs no network: style, script and data stand inside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["page"]


def page(package: str, name: str, title: str, data: Mapping[str, Any], path: str | Path | None = None) -> str:
    """The text of the page whose `name`.html, .css and .js lie in `package`, written to `path` where there is one."""
    embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "title": html.escape(title),
        "style": _asset(package, f"{name}.css"),
        "body": _asset(package, f"{name}.html"),
        "script": _asset(package, f"{name}.js"),
        "data": embedded.replace("<", "\\u003c"),  # nothing else could end a script element or begin a comment
    }
    head, *pieces = _asset(__package__ or "probewire.analysis", "page.html").split("{{")
    text = [head]
    for piece in pieces:  # one pass, so that nothing inside the data is taken for a place to fill
        place, _, rest = piece.partition("}}")
        text += [parts[place], rest]
    whole = "".join(text)
    if path is not None:
        Path(path).write_text(whole, encoding="utf-8")
    return whole


def _asset(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
