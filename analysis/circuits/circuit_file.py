"""The parts of a circuit's JSON: spaces and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .joined import AnySpace, JoinedSpace
from .space import Space, Unit

__all__ = ["space_json", "space_of", "unit_json", "unit_of"]


def space_json(space: AnySpace) -> dict[str, Any]:
    """A space as JSON data; a joined one as the list of its parts."""
    if isinstance(space, JoinedSpace):
        return {"parts": [asdict(part) for part in space.parts]}
    return asdict(space)


def space_of(data: Mapping[str, Any]) -> AnySpace:
    """What `space_json` gave."""
    if "parts" in data:
        return JoinedSpace(tuple(Space(**part) for part in data["parts"]))
    return Space(**data)


def unit_json(unit: Unit, score: float) -> dict[str, Any]:
    """A unit and its score; what is None is left out."""
    return {**{key: value for key, value in asdict(unit).items() if value is not None}, "score": score}


def unit_of(data: Mapping[str, Any]) -> Unit:
    """The unit of what `unit_json` gave."""
    return Unit(**{key: value for key, value in data.items() if key != "score"})
