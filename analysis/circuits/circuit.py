"""A circuit as a plain value: its units with their scores, how well it does, where it comes from, and what is said of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...protos.errors import InvalidArgument
from .card import Card, Edge
from .circuit_file import space_json, space_of, unit_json, unit_of
from .edge_space import EdgeSpace
from .joined import AnySpace, node_space
from .space import Mask, Scores, Unit

__all__ = ["Circuit", "Origin"]

FORMAT, VERSION, VERSIONS = "probewire.circuit", 2, (1, 2)
_FIELDS = {"format", "version", "id", "card", "origin", "space", "units", "edges"}
_ALWAYS = ("model", "model_hash", "task", "metric", "ablation", "method", "faithfulness")


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
    seeds: tuple[int, ...] | None = None
    """Of the prompts that it was found on."""
    corpus_hash: str = ""
    """sha256 of the texts of a reference, where one was measured."""
    library_versions: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Circuit:
    """Units of a space, best first; where it is one of edges, those too."""

    space: AnySpace
    units: tuple[Unit, ...]
    scores: tuple[float, ...]
    """Of each unit, in the metric's unit."""
    origin: Origin = Origin()
    edges: tuple[Edge, ...] = ()
    """Empty: every edge between its units."""
    card: Card = Card()

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        object.__setattr__(self, "scores", tuple(float(score) for score in self.scores))
        object.__setattr__(self, "edges", tuple(self.edges))
        if not self.units:
            raise InvalidArgument("the circuit is empty; lower the threshold or keep at least one unit")
        if len(self.units) != len(self.scores):
            raise InvalidArgument(f"{len(self.units)} units and {len(self.scores)} scores; every unit has one")
        if not np.isfinite([*self.scores, *(edge.score for edge in self.edges)]).all():
            raise InvalidArgument("the circuit's scores hold NaN or infinity; give a number for every unit and edge")
        found = [self.space.index_of(unit) for unit in self.units]
        if len(set(found)) != len(found):
            twice = next(unit for i, unit in enumerate(self.units) if found[i] in found[:i])
            raise InvalidArgument(f"{twice.name} is in the circuit twice")
        named = [(edge.sender, edge.receiver) for edge in self.edges]
        if len(set(named)) != len(named):
            raise InvalidArgument("an edge is in the circuit twice")
        members = {Unit.parse(name) for name in {edge.sender for edge in self.edges}}
        if lost := sorted(unit.name for unit in members - {replace(unit, position=None) for unit in self.units}):
            raise InvalidArgument(f"edges leave {lost[:3]}, which the circuit's units do not hold; add the units")

    @classmethod
    def of(cls, space: AnySpace, mask: Mask, scores: Scores, origin: Origin | None = None) -> Circuit:
        """The units that a mask keeps, sorted by score."""
        values, kept = space.scores(scores).ravel(), np.flatnonzero(space.checked(mask))
        order = kept[np.argsort(-values[kept], kind="stable")]
        units = tuple(space.unit_at(int(index)) for index in order)
        return cls(space, units, tuple(values[order].tolist()), origin or Origin())

    @classmethod
    def of_edges(
        cls, space: EdgeSpace, mask: Mask, scores: Scores, origin: Origin | None = None, *, n_heads: int = 0
    ) -> Circuit:
        """The edges that a mask keeps, and as units their senders, each with the sum of its kept edges' scores.

        `n_heads`: of the model, where senders are heads.
        """
        values, kept = space.scores(scores), space.checked(mask) & space.exists
        edges = [Edge(space.senders[s], space.receivers[r], float(values[s, r])) for s, r in np.argwhere(kept).tolist()]
        units = {name: Unit.parse(name) for name in space.senders}
        used = np.flatnonzero(kept.any(axis=1)).tolist()
        worth = (values * kept).sum(axis=1)
        order = sorted(used, key=lambda index: -worth[index])
        members = tuple(units[space.senders[index]] for index in order)
        nodes = node_space(units.values(), {"z": n_heads} if n_heads else {})
        return cls(nodes, members, tuple(float(worth[index]) for index in order), origin or Origin(), tuple(edges))

    @property
    def mask(self) -> Mask:
        """Of the space's shape: True where a unit is in the circuit."""
        found = np.zeros(self.space.size, dtype=bool)
        found[[self.space.index_of(unit) for unit in self.units]] = True
        return found.reshape(self.space.shape)

    def edge_mask(self, space: EdgeSpace) -> Mask:
        """[sender, receiver]: its edges in a space. Raises InvalidArgument for an edge that the space has not."""
        if not self.edges:
            raise InvalidArgument("the circuit has units and no edges; judge it with ablated(…), which takes units")
        found = np.zeros(space.shape, dtype=bool)
        for edge in self.edges:
            if edge.sender not in space.senders or edge.receiver not in space.receivers:
                raise InvalidArgument(f"{edge.sender} → {edge.receiver} is no edge between these senders and receivers")
            found[space.senders.index(edge.sender), space.receivers.index(edge.receiver)] = True
        return found

    @property
    def id(self) -> str:
        """What it is: the same for the same model, members and ablation, whatever their scores and its card."""
        members = [[edge.sender, edge.receiver] for edge in self.edges] or [[unit.name] for unit in self.units]
        text = json.dumps([self.origin.model_hash, sorted(members), self.origin.ablation], separators=(",", ":"))
        return f"circ-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def with_origin(self, **changes: Any) -> Circuit:
        """The same circuit with more known about it."""
        return replace(self, origin=replace(self.origin, **changes))

    def with_card(self, **changes: Any) -> Circuit:
        """The same circuit with more said about it."""
        return replace(self, card=replace(self.card, **changes))

    # ---- our own JSON ----

    def to_json(self) -> dict[str, Any]:
        """JSON data, of version 2; no number is rounded."""
        origin = asdict(self.origin)
        return {
            "format": FORMAT,
            "version": VERSION,
            "id": self.id,
            "card": self.card.to_json(),
            "origin": {key: value for key, value in origin.items() if value not in ("", None) or key in _ALWAYS},
            "space": space_json(self.space),
            "units": [unit_json(unit, score) for unit, score in zip(self.units, self.scores, strict=True)],
            "edges": [asdict(edge) for edge in self.edges],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Circuit:
        """What `to_json` gave, of version 1 too. Raises InvalidArgument for anything else."""
        if data.get("format") != FORMAT or data.get("version") not in VERSIONS:
            found = f"format {data.get('format')!r}, version {data.get('version')!r}"
            raise InvalidArgument(f"not a circuit of ours ({FORMAT}, version 1 or {VERSION}): {found}")
        try:
            if unknown := sorted(set(data) - _FIELDS):
                raise InvalidArgument(
                    f"a circuit file has the unknown {unknown}; it may have {', '.join(sorted(_FIELDS))}"
                )
            units: Sequence[Mapping[str, Any]] = data["units"]
            circuit = cls(
                space_of(data["space"]),
                tuple(unit_of(unit) for unit in units),
                tuple(unit["score"] for unit in units),
                _origin(data["origin"]),
                tuple(Edge(**edge) for edge in data.get("edges", ())),
                Card.from_json(data.get("card", {})),
            )
        except InvalidArgument:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"a damaged circuit file: {type(error).__name__}: {error}") from error
        if data.get("id", circuit.id) != circuit.id:
            raise InvalidArgument(
                f"the file says it is {data['id']}, and what it holds is {circuit.id}: it was changed by hand; take its "
                '"id" out to have it made anew'
            )
        return circuit

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
        edges = f", {len(self.edges):,} edges" if self.edges else ""
        named = f"{self.card.name!r}, " if self.card.name else ""
        return f"Circuit({named}{len(self.units):,} of {self.space.size:,} units{edges}{judged})"


def _origin(data: Mapping[str, Any]) -> Origin:
    origin = Origin(**data)
    return origin if origin.seeds is None else replace(origin, seeds=tuple(origin.seeds))
