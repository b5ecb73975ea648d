"""A circuit as a plain value: its units with their scores, how well it does, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...protos.errors import InvalidArgument
from .space import Mask, Scores, Space, Unit

__all__ = ["Circuit", "Origin"]

FORMAT, VERSION = "probewire.circuit", 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a circuit comes from and how it was judged."""

    model: str = ""
    model_hash: str = ""
    task: str = ""
    metric: str = ""
    """In words."""
    ablation: str = ""
    """What stood in place of all outside it when it was judged: patch, mean or zero."""
    method: str = ""
    """What ranked the units: "RelP (ln, identity, half, ah)"."""
    faithfulness: float | None = None
    """(F(C) − F(∅)) / (F(M) − F(∅)); None: not measured."""
    completeness: float | None = None
    """The same of everything outside it: low is good."""
    minimality: float | None = None
    """Share of its units that some smaller circuit needs."""
    n_prompts: int | None = None
    """Pairs of prompts that it was judged on."""
    created: str = ""
    """ISO date, as the maker gives it."""
    notes: Mapping[str, str] | None = None
    """Anything else worth keeping: versions, dtype, backend."""


@dataclass(frozen=True, slots=True, eq=False)
class Circuit:
    """Units of a space, best first."""

    space: Space
    units: tuple[Unit, ...]
    scores: tuple[float, ...]
    """Of each unit, in the metric's unit."""
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        object.__setattr__(self, "scores", tuple(float(score) for score in self.scores))
        if not self.units:
            raise InvalidArgument("the circuit is empty; lower the threshold or keep at least one unit")
        if len(self.units) != len(self.scores):
            raise InvalidArgument(f"{len(self.units)} units and {len(self.scores)} scores; every unit has one")
        found = [self.space.index_of(unit) for unit in self.units]
        if len(set(found)) != len(found):
            twice = next(unit for i, unit in enumerate(self.units) if found[i] in found[:i])
            raise InvalidArgument(f"{twice.name} is in the circuit twice")

    @classmethod
    def of(cls, space: Space, mask: Mask, scores: Scores, origin: Origin | None = None) -> Circuit:
        """The units that a mask keeps, sorted by score."""
        values, kept = space.scores(scores).ravel(), np.flatnonzero(space.checked(mask))
        order = kept[np.argsort(-values[kept], kind="stable")]
        units = tuple(space.unit_at(int(index)) for index in order)
        return cls(space, units, tuple(values[order].tolist()), origin or Origin())

    @property
    def mask(self) -> Mask:
        """Of the space's shape: True where a unit is in the circuit."""
        found = np.zeros(self.space.size, dtype=bool)
        found[[self.space.index_of(unit) for unit in self.units]] = True
        return found.reshape(self.space.shape)

    def with_origin(self, **changes: Any) -> Circuit:
        """The same circuit with more known about it."""
        return replace(self, origin=replace(self.origin, **changes))

    # ---- our own JSON ----

    def to_json(self) -> dict[str, Any]:
        """JSON data; no number is rounded."""
        units = [
            {**{key: value for key, value in asdict(unit).items() if value is not None}, "score": score}
            for unit, score in zip(self.units, self.scores, strict=True)
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "origin": asdict(self.origin),
            "space": asdict(self.space),
            "units": units,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Circuit:
        """What `to_json` gave. Raises InvalidArgument for anything else."""
        if (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            found = f"format {data.get('format')!r}, version {data.get('version')!r}"
            raise InvalidArgument(f"not a circuit of ours ({FORMAT}, version {VERSION}): {found}")
        try:
            units: Sequence[Mapping[str, Any]] = data["units"]
            return cls(
                Space(**data["space"]),
                tuple(Unit(**{k: v for k, v in unit.items() if k != "score"}) for unit in units),
                tuple(unit["score"] for unit in units),
                Origin(**data["origin"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidArgument(f"a damaged circuit file: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write `to_json` to a file."""
        path = Path(path)
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read what `save` wrote. Raises InvalidArgument when it is something else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidArgument(f"{path} is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise InvalidArgument(f"{path} holds a {type(data).__name__}, not a circuit")
        return cls.from_json(cast("dict[str, Any]", data))

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        f = self.origin.faithfulness
        judged = "" if f is None else f", faithfulness {f:.2f} ({self.origin.ablation} ablation)"
        return f"Circuit({len(self.units):,} of {self.space.size:,} units{judged})"
