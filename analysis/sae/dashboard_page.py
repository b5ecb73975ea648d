"""An SAE's latents as one HTML file that needs no network: a list to search and sort, and a card for each latent."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from pathlib import Path

from .dashboard_data import DashboardData, page_data

__all__ = ["dashboard_page"]


def dashboard_page(data: DashboardData, path: str | Path | None = None, *, title: str = "") -> str:
    """The page's text, written to `path` where there is one. Latents are drawn when they are looked at."""
    title = title or f"Latents of {data.about.get('SAE', 'an SAE')}"
    embedded = json.dumps(page_data(data, title), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Within a script element only "<" could end it or begin a comment.
    parts = {
        "title": html.escape(title),
        "style": _asset("dashboard_page.css"),
        "script": _asset("dashboard_page.js"),
        "data": embedded.replace("<", "\\u003c"),
    }
    head, *pieces = _asset("dashboard_page.html").split("{{")
    page = [head]
    for piece in pieces:  # one pass, so that nothing inside the data is taken for a place to fill
        name, _, rest = piece.partition("}}")
        page += [parts[name], rest]
    text = "".join(page)
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def _asset(name: str) -> str:
    return files(__package__ or "probewire.analysis.sae").joinpath(name).read_text(encoding="utf-8")
