"""Entanglement as one HTML file that needs no network: units by domain, and what stands around their strongest places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..page import page
from .entanglement import Entanglement

__all__ = ["entanglement_page"]

UNITS = 200


def entanglement_page(found: Entanglement, path: str | Path | None = None, *, texts: bool = True) -> str:
    """The page's text, written to `path` where there is one. `texts=False` leaves the contexts out.

    The first 200 units: entangled ones, then general, then others that fire in several domains.
    """
    order = dict.fromkeys(
        [*found.losses, *found.entangled_without_words, *found.entangled, *found.general, *found.broad]
    )
    data: dict[str, Any] = {
        "title": f"Units of several domains at {found.site}",
        "domains": list(found.names),
        "rows": list(found.n_rows),
        "n_units": len(found.word_share),
        "counts": {
            "fire in several domains": len(found.broad),
            "of these, still without words": len(set(found.broad_without_words) & set(found.broad_beyond_words)),
            "about something else in two domains": len(found.entangled),
            "of these, still without words ": len(found.entangled_without_words),
            "under permuted domains": list(found.entangled_permuted),
            "general": len(found.general),
            "know the domain": len(found.selective),
            "know it by chance": round(found.expected_selective),
        },
        "told": list(found.told),
        "notes": list(found.notes),
        "units": [_unit(found, unit, texts) for unit in list(order)[:UNITS]],
    }
    return page(__package__ or "probewire.analysis.features", "entanglement_page", str(data["title"]), data, path)


def _unit(found: Entanglement, unit: int, texts: bool) -> dict[str, Any]:
    kept, entangled, general = (
        unit in some for some in (found.entangled_without_words, found.entangled, found.general)
    )
    words = "entangled" if kept else "by its words" if entangled else "general" if general else "several domains"
    contexts: Mapping[str, tuple[str, ...]] = found.contexts.get(unit, {}) if texts else {}
    return {
        "unit": unit,
        "kind": words,
        "effective": float(found.profile.effective[unit]),
        "information": float(found.profile.information[unit]),
        "word": float(found.word_share[unit]),
        "rates": [float(rate) for rate in found.profile.rates[unit]],
        "losses": [float(found.losses[unit][name]) for name in found.names] if unit in found.losses else None,
        "contexts": [list(contexts.get(name, ())) for name in found.names],
    }
