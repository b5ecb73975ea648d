"""The page of words beside a circuit's files, for whoever meets it in a repository."""

from __future__ import annotations

from collections.abc import Sequence

from ..circuits import Circuit

__all__ = ["readme"]

UNITS = 12


def readme(versions: Sequence[Circuit]) -> str:
    """Markdown of a circuit, from its latest version, with a table of all of them, given oldest first."""
    circuit = versions[-1]
    card, origin = circuit.card, circuit.origin
    parts = [f"# {card.name}", card.description]
    facts = {
        "id": circuit.id,
        "model": f"{origin.model} ({origin.model_hash[:16]})",
        "task": origin.task,
        "metric": origin.metric,
        "ablation": origin.ablation,
        "found by": origin.method,
        "tags": ", ".join(card.tags),
        "authors": ", ".join(card.authors),
        "licence": card.licence,
        "requires": ", ".join(card.requires),
        "conflicts with": ", ".join(card.conflicts),
    }
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items() if value.strip(" ()")))
    rows = [
        f"| {one.card.version} | {len(one)} of {one.space.size:,} | {_figure(one.origin.faithfulness)} | "
        f"{_figure(one.origin.completeness)} | {one.card.level} |"
        for one in versions
    ]
    head = "| version | units | faithfulness | of the rest | level |\n| --- | --- | --- | --- | --- |"
    parts.append("\n".join([head, *rows]))
    best = zip(circuit.units[:UNITS], circuit.scores, strict=False)
    named = "\n".join(f"- {unit.name}: {score:+.3g}" for unit, score in best)
    parts.append(f"Its best units:\n\n{named}")
    if card.claims:
        claims = "\n".join(f"- {one.unit}: {one.role} ({one.measure} ≥ {one.min:g})" for one in card.claims)
        parts.append(f"Claims:\n\n{claims}")
    if card.references:
        parts.append("References:\n\n" + "\n".join(f"- {one}" for one in card.references))
    return "\n\n".join(part for part in parts if part) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
