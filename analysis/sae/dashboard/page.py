"""An SAE's latents as one HTML file that needs no network: a list to search and sort, and a card for each latent."""

from __future__ import annotations

from pathlib import Path

from ...page import page
from .data import DashboardData, page_data

__all__ = ["dashboard_page"]


def dashboard_page(data: DashboardData, path: str | Path | None = None, *, title: str = "") -> str:
    """The page's text, written to `path` where there is one. Latents are drawn when they are looked at."""
    title = title or f"Latents of {data.about.get('SAE', 'an SAE')}"
    return page(__package__ or "probewire.analysis.sae.dashboard", "page", title, page_data(data, title), path)
