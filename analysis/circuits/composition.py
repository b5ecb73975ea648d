"""Circuits made of circuits: union, intersection, difference, and what they require of each other.

What the parts do together is another question, which interference.py answers by measuring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from ...protos.errors import InvalidArgument, NotFound
from ...protos.sites import Site
from .card import Card, Edge
from .circuit import Circuit, Origin
from .joined import AnySpace, JoinedSpace
from .space import Space, Unit

__all__ = ["How", "Known", "compose_circuits", "lifted"]

How = Literal["union", "intersection", "difference", "priority"]
HOWS: tuple[How, ...] = ("union", "intersection", "difference", "priority")
_INNER = {"attn_out": ("z", "head"), "mlp_out": ("mlp_act", "unit")}
"""A block's output is a linear function of these, so that replacing the one is replacing all of the other."""


class Known(Protocol):
    """Where required circuits are looked up: a CircuitLibrary."""

    def get(self, name_or_id: str, version: str | None = None) -> Circuit:
        """A circuit by name or id. Raises NotFound."""
        ...


def compose_circuits(
    circuits: Sequence[Circuit], how: How = "union", *, name: str = "", library: Known | None = None
) -> Circuit:
    """One circuit of several; unions with all that they require, transitively, looked up in `library`.

    union: all units, each with its score of the largest size. priority: the same, scores of the first that has the unit.
    intersection: units of all, each with its smallest score. difference: the first's that no other has. Circuits of other
    spaces are lifted to the finest one. Raises InvalidArgument for other models, spaces of which none holds the others,
    conflicts and circles (with the way there), and a result without units.
    """
    if how not in HOWS:
        raise InvalidArgument(f"how={how!r}; allowed: {', '.join(HOWS)}")
    if not circuits:
        raise InvalidArgument("there are no circuits to compose; give one at least")
    # What a part of a circuit requires nobody knows; only circuits that are kept whole bring their own along.
    given = _with_required(circuits, library) if how in ("union", "priority") else list(circuits)
    hashes = {one.origin.model_hash for one in given}
    if len(hashes) > 1:
        raise InvalidArgument(
            f"circuits of several models cannot be one: {', '.join(sorted(h[:16] or 'unnamed' for h in hashes))}"
        )
    space = _finest([one.space for one in given])
    scored = [dict(zip(c.units, c.scores, strict=True)) for c in (lifted(one, space) for one in given)]
    units = _combined(scored, how)
    if not units:
        raise InvalidArgument(f"the {how} of {', '.join(_named(one) for one in given)} has no unit")
    order = sorted(units, key=lambda unit: -units[unit])
    edges = _edges(given, how) if space == given[0].space else ()
    ablations = {one.origin.ablation for one in given}
    origin = Origin(
        model=given[0].origin.model,
        model_hash=given[0].origin.model_hash,
        ablation=ablations.pop() if len(ablations) == 1 else "",
        method=f"{how} of circuits",
        notes={"made_of": ", ".join(one.id for one in given)},
    )
    tags = tuple(dict.fromkeys(tag for one in given for tag in one.card.tags))
    return Circuit(space, tuple(order), tuple(units[u] for u in order), origin, edges, Card(name=name, tags=tags))


def lifted(circuit: Circuit, space: AnySpace) -> Circuit:
    """The same circuit in a finer space: whole sites as all their parts, blocks as their heads or neurons, units that hold
    everywhere as one at each position. A unit's score is shared out evenly. Raises InvalidArgument where it has no place.
    """
    if circuit.space == space:
        return circuit
    scores: dict[Unit, float] = {}
    for unit, score in zip(circuit.units, circuit.scores, strict=True):
        inside = _inside(unit, space)
        if not inside:
            raise InvalidArgument(f"{unit.name} has no place in {space!r}")
        scores |= {one: score / len(inside) for one in inside}
    order = sorted(scores, key=lambda unit: -scores[unit])
    return Circuit(space, tuple(order), tuple(scores[u] for u in order), circuit.origin, (), circuit.card)


def _inside(unit: Unit, space: AnySpace) -> list[Unit]:
    """All units of a space that together are one unit; none where it is not to be made of them."""
    parts = space.parts if isinstance(space, JoinedSpace) else (space,)
    for part in parts:
        found = _within(unit, part)
        if found:
            return found
    return []


def _within(unit: Unit, space: Space) -> list[Unit]:
    kind, whole = Site.parse(unit.site).name, unit.unit is None and unit.head is None
    site, inner = unit.site, space.part
    if site not in space.sites and whole and kind in _INNER:
        name, needed = _INNER[kind]
        site = f"{name}.{unit.site.partition('.')[2]}"
        inner = space.part if space.part == needed else None
        if inner is None:
            return []
    if site not in space.sites:
        return []
    pieces: list[dict[str, int]]
    if whole:
        pieces = [{}] if space.part is None else [{space.part: index} for index in range(space.width)]
    elif space.part is not None and getattr(unit, space.part) is not None:
        pieces = [{space.part: getattr(unit, space.part)}]
    else:
        return []
    if unit.position is not None:
        places: list[int | None] = (
            [unit.position] if space.n_tokens is not None and unit.position < space.n_tokens else []
        )
    else:
        places = [None] if space.n_tokens is None else list(range(space.n_tokens))
    return [Unit(site, place, **piece) for place in places for piece in pieces]


def _finest(spaces: Sequence[AnySpace]) -> AnySpace:
    """The one that all the others can be lifted to."""
    distinct = list(dict.fromkeys(spaces))
    for space in distinct:
        if all(_holds(space, other) for other in distinct):
            return space
    raise InvalidArgument(
        "of these circuits' spaces none holds the others: "
        + "; ".join(repr(space) for space in distinct)
        + ". A circuit says nothing of sites outside its space, so it cannot be joined with one that replaces them; find both over "
        "one space (JoinedSpace has several kinds of units)"
    )


def _holds(fine: AnySpace, coarse: AnySpace) -> bool:
    """Whether every unit of one can be made of units of the other, and nothing else is in the other."""
    if fine == coarse:
        return True
    found = [set(_inside(coarse.unit_at(index), fine)) for index in range(coarse.size)]
    return all(found) and len(set[Unit]().union(*found)) == fine.size


def _combined(scored: Sequence[dict[Unit, float]], how: How) -> dict[Unit, float]:
    first, *rest = scored
    if how == "difference":
        return {unit: score for unit, score in first.items() if not any(unit in other for other in rest)}
    if how == "intersection":
        kept = [unit for unit in first if all(unit in other for other in rest)]
        return {unit: min((one[unit] for one in scored), key=abs) for unit in kept}
    found: dict[Unit, float] = {}
    for one in scored:
        for unit, score in one.items():
            if unit not in found or (how == "union" and abs(score) > abs(found[unit])):
                found[unit] = score
    return found


def _edges(circuits: Sequence[Circuit], how: How) -> tuple[Edge, ...]:
    """Of circuits that all have edges; otherwise every edge between the units counts, as for circuits without."""
    if how in ("intersection", "difference") or not all(one.edges for one in circuits):
        return ()
    found: dict[tuple[str, str], Edge] = {}
    for circuit in circuits:
        for edge in circuit.edges:
            found.setdefault((edge.sender, edge.receiver), edge)
    return tuple(found.values())


# ---- what they require ----


def _with_required(circuits: Sequence[Circuit], library: Known | None) -> list[Circuit]:
    """The circuits, then what they require, each once."""
    given = {one.id: one for one in circuits}
    found: dict[str, tuple[Circuit, str]] = {}

    def visit(circuit: Circuit, way: tuple[str, ...]) -> None:
        if circuit.id in way:
            circle = [*way[way.index(circuit.id) :], circuit.id]
            raise InvalidArgument(f"circuits require each other in a circle: {' → '.join(circle)}")
        path = (*way, circuit.id)
        if circuit.id in found:
            return
        for needed in circuit.card.requires:
            visit(given[needed] if needed in given else _required(circuit, needed, library), path)
        found[circuit.id] = (circuit, " → ".join(path))

    for circuit in circuits:
        visit(circuit, ())
    for circuit, way in found.values():
        for other in circuit.card.conflicts:
            if other in found:
                raise InvalidArgument(
                    f"{_named(circuit)} ({way}) is in conflict with {_named(found[other][0])} ({found[other][1]}); leave one out"
                )
    return [found[key][0] for key in [*given, *(key for key in found if key not in given)]]


def _required(circuit: Circuit, needed: str, library: Known | None) -> Circuit:
    if library is None:
        raise InvalidArgument(f"{_named(circuit)} requires {needed}; give it too, or library=CircuitLibrary(…)")
    try:
        return library.get(needed)
    except NotFound as error:
        raise InvalidArgument(f"{_named(circuit)} requires {needed}, which the library does not have") from error


def _named(circuit: Circuit) -> str:
    return circuit.card.name or circuit.id
