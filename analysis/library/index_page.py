"""A library as one HTML file that needs no network: a table to search and sort, and a card of each circuit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..circuits import Circuit
from ..page import page

__all__ = ["index_page"]

UNITS = 60
"""Of each circuit on the page."""


def index_page(circuits: Sequence[Circuit], title: str, path: str | Path | None = None) -> str:
    """The page's text, written to `path` where there is one. `circuits`: all versions, the latest of each last."""
    data = {"title": f"Circuits in {title}", "circuits": [_entry(one) for one in circuits]}
    return page(__package__ or "probewire.analysis.library", "index", data["title"], data, path)  # pyright: ignore[reportArgumentType] - a text


def _entry(circuit: Circuit) -> dict[str, Any]:
    card, origin = circuit.card, circuit.origin
    units = list(zip(circuit.units, circuit.scores, strict=True))[:UNITS]
    return {
        "id": circuit.id,
        "name": card.name,
        "version": card.version,
        "category": card.category,
        "description": card.description,
        "tags": list(card.tags),
        "model": origin.model,
        "hash": origin.model_hash,
        "task": origin.task,
        "metric": origin.metric,
        "ablation": origin.ablation,
        "method": origin.method,
        "faithfulness": origin.faithfulness,
        "completeness": origin.completeness,
        "level": card.level,
        "size": len(circuit),
        "of": circuit.space.size,
        "edges": len(circuit.edges),
        "units": [[unit.name, score] for unit, score in units],
        "claims": [[one.unit, one.role, one.measure, one.min] for one in card.claims],
        "checks": [
            [str(one.get("time", "")), one["level"], str(one.get("backend", "")), str(one.get("verdict", ""))]
            for one in card.validation
            if "level" in one
        ],
        "facts": {
            "authors": ", ".join(card.authors),
            "licence": card.licence,
            "references": "; ".join(card.references),
            "requires": ", ".join(card.requires),
            "conflicts": ", ".join(card.conflicts),
            "variant": card.weights,
            "supersedes": card.supersedes,
        },
    }
