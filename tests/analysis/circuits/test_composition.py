"""Circuits of circuits: units, scores, spaces that differ, requirements, conflicts and circles."""

from __future__ import annotations

from pathlib import Path

import pytest

from probewire.analysis.circuits import Circuit, Edge, Origin, Space, Unit, compose_circuits, lifted
from probewire.analysis.library import CircuitLibrary
from probewire.clients import InvalidArgument

HEADS, BLOCKS = Space(("z.0", "z.1"), None, "head", 2), Space(("attn_out.0", "attn_out.1"))


def heads(*scored: tuple[int, int, float], hash_: str = "abc", **card: object) -> Circuit:
    units = tuple(Unit(f"z.{layer}", head=head) for layer, head, _ in scored)
    return Circuit(HEADS, units, tuple(s for _, _, s in scored), Origin(model_hash=hash_, ablation="patch")).with_card(
        **card
    )


A, B = heads((0, 0, 2.0), (0, 1, 1.0), name="a"), heads((0, 1, -3.0), (1, 0, 0.5), name="b")


def scores(circuit: Circuit) -> dict[str, float]:
    return {unit.name: score for unit, score in zip(circuit.units, circuit.scores, strict=True)}


def test_sets_of_units_and_their_scores() -> None:
    assert scores(compose_circuits([A, B])) == {"z.0 head 0": 2.0, "z.0 head 1": -3.0, "z.1 head 0": 0.5}
    assert scores(compose_circuits([A, B], "priority"))["z.0 head 1"] == 1.0
    assert scores(compose_circuits([A, B], "intersection")) == {"z.0 head 1": 1.0}
    assert scores(compose_circuits([A, B], "difference")) == {"z.0 head 0": 2.0}
    found = compose_circuits([A, B], name="both")
    assert (found.card.name, found.origin.ablation, found.origin.model_hash) == ("both", "patch", "abc")
    assert found.origin.notes == {"made_of": f"{A.id}, {B.id}"}
    assert compose_circuits([A, B]).id == compose_circuits([B, A]).id


def test_what_is_no_composition() -> None:
    for circuits, how, match in (
        ([], "union", "no circuits to compose"),
        ([A, A.with_origin(model_hash="other")], "union", "several models"),
        ([A], "sum", "allowed: union, intersection, difference, priority"),
        ([A, heads((1, 1, 1.0))], "intersection", "has no unit"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            compose_circuits(circuits, how)


def test_spaces_are_lifted_to_the_finest() -> None:
    block = Circuit(BLOCKS, (Unit("attn_out.1"),), (4.0,), Origin(model_hash="abc"))
    found = compose_circuits([block, A])
    assert found.space == HEADS
    assert scores(found) == {"z.1 head 0": 2.0, "z.1 head 1": 2.0, "z.0 head 0": 2.0, "z.0 head 1": 1.0}
    placed = Space(("z.0", "z.1"), 3, "head", 2)
    assert len(lifted(A, placed)) == 6
    assert lifted(A, placed).units[0].position is not None
    whole = Space(("z.0", "z.1"))
    assert [unit.name for unit in lifted(Circuit(whole, (Unit("z.0"),), (1.0,)), HEADS).units] == [
        "z.0 head 0",
        "z.0 head 1",
    ]
    mlps = Circuit(Space(("mlp_out.0",)), (Unit("mlp_out.0"),), (1.0,), Origin(model_hash="abc"))
    with pytest.raises(InvalidArgument, match="none holds the others"):
        compose_circuits([A, mlps])
    with pytest.raises(InvalidArgument, match=r"mlp_out\.0 has no place"):
        lifted(mlps, HEADS)


def test_edges_of_both_where_both_have_them() -> None:
    one, two = Edge("z.0 head 0", "attn_resid.1", 1.0), Edge("z.0 head 1", "attn_resid.1", 2.0)
    a = Circuit(HEADS, A.units, A.scores, A.origin, (one,))
    b = Circuit(HEADS, B.units, B.scores, B.origin, (two,))
    assert set(compose_circuits([a, b]).edges) == {one, two}
    assert compose_circuits([a, B]).edges == ()


def test_what_a_circuit_requires_comes_along(tmp_path: Path) -> None:
    library = CircuitLibrary(tmp_path / "library")
    base = heads((1, 1, 1.0), name="base")
    middle = heads((1, 0, 1.0), name="middle", requires=(base.id,))
    top = heads((0, 0, 1.0), name="top", requires=(middle.id,))
    with pytest.raises(InvalidArgument, match=r"top requires circ-.*library="):
        compose_circuits([top])
    with pytest.raises(InvalidArgument, match="which the library does not have"):
        compose_circuits([top], library=library)
    for one in (base, middle):
        library.add(one)
    assert set(scores(compose_circuits([top], library=library))) == {"z.0 head 0", "z.1 head 0", "z.1 head 1"}
    assert set(scores(compose_circuits([top, A], "intersection"))) == {"z.0 head 0"}


def test_circles_and_conflicts_are_told_with_the_way_there() -> None:
    one, two = heads((0, 0, 1.0), name="one"), heads((0, 1, 1.0), name="two")
    one, two = one.with_card(requires=(two.id,)), two.with_card(requires=(one.id,))
    with pytest.raises(InvalidArgument, match=f"circle: {one.id} → {two.id} → {one.id}"):
        compose_circuits([one, two])
    rival = heads((1, 1, 1.0), name="rival", conflicts=(two.id,))
    with pytest.raises(InvalidArgument, match=f"rival .* in conflict with two .*{two.id}"):
        compose_circuits([rival, heads((1, 0, 1.0), name="user", requires=(two.id,)), two.with_card(requires=())])
