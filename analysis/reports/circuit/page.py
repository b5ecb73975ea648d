"""A circuit's checks as one HTML file that needs no network: a line a check, with its number, interval and bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...circuits import Circuit, Interference
from ...page import page
from .report import LEVELS, QaReport

__all__ = ["qa_page"]

UNITS = 40


def qa_page(
    report: QaReport,
    path: str | Path | None = None,
    *,
    circuit: Circuit | None = None,
    interference: Interference | None = None,
    texts: bool = True,
) -> str:
    """The page's text, written to `path` where there is one. `texts=False` leaves the prompts' tokens out."""
    facts = dict(report.facts)
    if not texts:
        facts.pop("contexts", None)
    data: dict[str, Any] = {
        "title": f"Checks of {report.name or report.circuit}",
        "levels": list(LEVELS),
        "report": {**report.to_json(), "facts": facts, "sha256": report.sha256},
        "units": [] if circuit is None else _members(circuit)[:UNITS],
        "claims": [] if circuit is None else [[c.unit, c.role, c.measure, c.min] for c in circuit.card.claims],
        "interference": None if interference is None else interference.to_json(),
    }
    return page(__package__ or "probewire.analysis.reports.circuit", "page", str(data["title"]), data, path)


def _members(circuit: Circuit) -> list[list[Any]]:
    """[name, score] of each edge, where it is a circuit of edges, else of each unit; best first."""
    if circuit.edges:
        return [[edge.name, edge.score] for edge in sorted(circuit.edges, key=lambda edge: -edge.score)]
    return [[u.name, s] for u, s in zip(circuit.units, circuit.scores, strict=True)]
