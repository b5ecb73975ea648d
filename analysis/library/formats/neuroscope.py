"""Circuits in the JSON fields of NeuroScope's MCP server (its `CircuitLibraryEntrySchema`), both ways.

{"circuit": {id, name, description, phenomenon, layers, components [{type, layer, component_id, weight, metadata}], confidence, metadata,
validation_status, created_at, updated_at}, "version", "tags", "author", "references", "performance_metrics"}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from ....protos.errors import InvalidArgument
from ...circuits import Card, Circuit, Origin, Unit, node_space
from .shape import Shape

__all__ = ["is_neuroscope", "neuroscope_circuit", "neuroscope_json"]

_TYPES = {"embed": "embedding", "z": "attention", "attn_out": "attention", "mlp_out": "mlp", "mlp_act": "mlp"}
_PART = re.compile(r"(?:.*[^a-z])?(head|neuron|unit)[ _#-]*(\d+)", re.IGNORECASE)
OWN = "probewire"
"""Key of our own file within `metadata`, so that nothing is lost on the way back."""


def is_neuroscope(data: Any) -> bool:
    """Whether JSON data looks like an entry, or the circuit of one."""
    if not isinstance(data, Mapping):
        return False
    entry = cast("Mapping[str, Any]", data)
    return isinstance(entry.get("circuit", entry), Mapping) and "components" in entry.get("circuit", entry)


def neuroscope_json(circuit: Circuit) -> dict[str, Any]:
    """An entry of that library, with our own file in its metadata."""
    card, origin = circuit.card, circuit.origin
    layers = sorted({_layer(unit) for unit in circuit.units})
    metrics = {name: getattr(origin, name) for name in ("faithfulness", "completeness", "minimality")}
    return {
        "circuit": {
            "id": circuit.id,
            "name": card.name or circuit.id,
            "description": card.description,
            "phenomenon": origin.task or card.category,
            "layers": layers,
            "components": [_component(unit, score) for unit, score in zip(circuit.units, circuit.scores, strict=True)],
            "confidence": min(max(origin.faithfulness or 0.0, 0.0), 1.0),
            "metadata": {OWN: circuit.to_json()},
            "validation_status": "validated" if card.level >= 2 else "pending" if card.level < 1 else "unknown",
            "created_at": origin.created,
            "updated_at": origin.created,
        },
        "version": card.version,
        "tags": list(card.tags),
        "author": ", ".join(card.authors),
        "references": list(card.references),
        "performance_metrics": {name: value for name, value in metrics.items() if value is not None},
    }


def neuroscope_circuit(data: Mapping[str, Any], shape: Shape | None = None, origin: Origin | None = None) -> Circuit:
    """The circuit of an entry, from our own file where it carries one. `confidence` is nobody's faithfulness: it is a note.

    Raises InvalidArgument for components that name nothing we know, and, where heads or neurons are named, without a shape.
    """
    circuit: Mapping[str, Any] = data.get("circuit", data)
    metadata: Mapping[str, Any] = circuit.get("metadata") or {}
    own = metadata.get(OWN)
    if own is not None:
        return Circuit.from_json(own)
    scores: dict[Unit, float] = {}
    for component in circuit["components"]:
        scores[_unit(component)] = float(component.get("weight") or 0.0)
    widths = {} if shape is None else {"z": shape.n_heads, "mlp_act": shape.d_mlp}
    units = sorted(scores, key=lambda unit: -scores[unit])
    notes = {
        name: str(circuit[name]) for name in ("confidence", "validation_status", "phenomenon") if circuit.get(name)
    }
    card = Card(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", str(circuit.get("name") or "")).strip("-.")[:64],
        version=_version(data.get("version")),
        description=str(circuit.get("description") or ""),
        tags=tuple(data.get("tags") or ()),
        authors=tuple(filter(None, [str(data.get("author") or "")])),
        references=tuple(data.get("references") or ()),
    )
    found = origin or Origin(method="NeuroScope's circuit", created=str(circuit.get("created_at") or ""), notes=notes)
    return Circuit(node_space(units, widths), tuple(units), tuple(scores[unit] for unit in units), found, (), card)


def _component(unit: Unit, score: float) -> dict[str, Any]:
    kind = unit.site.split(".")[0]
    place = {"site": unit.site, "head": unit.head, "unit": unit.unit, "position": unit.position}
    return {
        "type": _TYPES.get(kind, "residual"),
        "layer": _layer(unit),
        "component_id": unit.name,
        "weight": score,
        "metadata": {name: value for name, value in place.items() if value is not None},
    }


def _unit(component: Mapping[str, Any]) -> Unit:
    try:
        kind, layer, name = str(component["type"]), int(component["layer"]), str(component["component_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"a component has type, layer and component_id, got {component!r}") from error
    part = _PART.fullmatch(name)
    number = int(part[2]) if part else None
    if kind == "embedding":
        return Unit("embed")
    if kind == "residual":
        return Unit(f"resid_post.{layer}")
    if kind == "attention" and (part is None or part[1].lower() == "head"):
        return Unit(f"attn_out.{layer}") if number is None else Unit(f"z.{layer}", head=number)
    if kind == "mlp" and (part is None or part[1].lower() in ("neuron", "unit")):
        return Unit(f"mlp_out.{layer}") if number is None else Unit(f"mlp_act.{layer}", unit=number)
    raise InvalidArgument(
        f"component {name!r} of type {kind!r}: types are attention (head_3), mlp (neuron_12), residual, embedding"
    )


def _layer(unit: Unit) -> int:
    _, _, layer = unit.site.partition(".")
    return int(layer) if layer.isdigit() else 0


def _version(given: Any) -> str:
    found = re.match(r"\d+(\.\d+){0,2}", str(given or "1"))
    return found[0] if found else "1"
