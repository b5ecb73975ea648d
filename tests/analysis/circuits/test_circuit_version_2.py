"""What version 2 of a circuit's file adds: edges, joined spaces, a card, an id; and that version 1 stays readable."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.circuits import (
    Card,
    Circuit,
    Claim,
    Edge,
    EdgeSpace,
    JoinedSpace,
    Origin,
    Space,
    Unit,
    node_space,
)
from probewire.clients import InvalidArgument

HEADS, MLPS = Space(("z.0", "z.1"), None, "head", 3), Space(("mlp_out.0", "mlp_out.1"))
SPACE = JoinedSpace((HEADS, MLPS))
CARD = Card(
    name="ioi-heads",
    version="1.2",
    category="syntax/names",
    description="who gets the drink",
    tags=("names",),
    claims=(Claim("z.1 head 2", "name mover", "name_mover", 0.3),),
    requires=("circ-0123456789abcdef",),
    validation=({"level": 2, "time": "2026-11-30"},),
)
EDGES = EdgeSpace(
    ("embed", "attn_out.0", "mlp_out.0", "attn_out.1", "mlp_out.1"),
    ("attn_resid.0", "mlp_resid.0", "attn_resid.1", "mlp_resid.1", "resid_post.1"),
)


def mixed() -> Circuit:
    mask = np.zeros(SPACE.size, dtype=bool)
    mask[[5, 1, 7]] = True
    return Circuit.of(SPACE, mask, np.arange(8.0), Origin(model_hash="abc", ablation="mean"))


def of_edges() -> Circuit:
    mask = np.zeros(EDGES.shape, dtype=bool)
    mask[0, 1] = mask[0, 4] = mask[2, 4] = True
    return Circuit.of_edges(EDGES, mask, np.arange(25.0).reshape(5, 5), Origin(model_hash="abc"))


def test_units_are_named_and_read_back() -> None:
    for name in ("z.9 head 6", "mlp_act.3 #812 @5", "mlp_out.4", "embed @0"):
        assert Unit.parse(name).name == name
    for wrong in ("z.9 head", "z.9 head x", "", "mlp_act.3 #1 #2"):
        with pytest.raises(InvalidArgument):
            Unit.parse(wrong)


def test_a_joined_space_counts_its_parts_one_after_another() -> None:
    assert (SPACE.size, SPACE.shape) == (8, (8,))
    assert SPACE.site_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert [SPACE.index_of(SPACE.unit_at(i)) for i in range(8)] == list(range(8))
    assert mixed().units == (Unit("mlp_out.1"), Unit("z.1", head=2), Unit("z.0", head=1))
    assert [kept.sum() for _, kept in SPACE.split(mixed().mask)] == [2, 1]
    assert SPACE.joined_scores([np.ones((2, 3)), np.zeros(2)]).tolist() == [1.0] * 6 + [0.0] * 2
    with pytest.raises(InvalidArgument, match=r"z\.0 is in two parts"):
        JoinedSpace((HEADS, HEADS))
    with pytest.raises(InvalidArgument, match="whole and in parts"):
        node_space([Unit("z.0"), Unit("z.0", head=1)], {"z": 3})


def test_every_kind_of_circuit_comes_back_from_its_file(tmp_path: Path) -> None:
    for circuit in (mixed().with_card(**{f: getattr(CARD, f) for f in asdict(CARD)}), of_edges()):
        found = Circuit.load(circuit.save(tmp_path / "c.json"))
        assert (found.space, found.units, found.scores) == (circuit.space, circuit.units, circuit.scores)
        assert (found.edges, found.card, found.origin, found.id) == (
            circuit.edges,
            circuit.card,
            circuit.origin,
            circuit.id,
        )
        assert json.loads((tmp_path / "c.json").read_text())["version"] == 2


def test_a_file_of_version_1_is_read() -> None:
    old = {
        "format": "probewire.circuit",
        "version": 1,
        "origin": {"model": "m", "model_hash": "abc", "faithfulness": 0.8, "ablation": "patch", "notes": None},
        "space": {"sites": ["mlp_act.0"], "n_tokens": 3, "part": "unit", "width": 4},
        "units": [{"site": "mlp_act.0", "position": 1, "unit": 2, "score": 0.5}],
    }
    circuit = Circuit.from_json(old)
    assert (circuit.units[0].name, circuit.scores, circuit.edges, circuit.card) == (
        "mlp_act.0 #2 @1",
        (0.5,),
        (),
        Card(),
    )


def test_the_id_is_of_the_members_and_nothing_else() -> None:
    circuit = mixed()
    reordered = Circuit(SPACE, circuit.units[::-1], (9.0, 8.0, 7.0), circuit.origin)
    assert circuit.id == reordered.id == circuit.with_card(name="x").id == circuit.with_origin(task="t").id
    assert len(circuit.id) == 5 + 16
    others = {
        circuit.id,
        circuit.with_origin(model_hash="b").id,
        circuit.with_origin(ablation="zero").id,
        of_edges().id,
    }
    assert len(others) == 4
    changed = {**circuit.to_json(), "units": circuit.to_json()["units"][:2]}
    with pytest.raises(InvalidArgument, match="changed by hand"):
        Circuit.from_json(changed)


def test_edges_make_units_and_a_mask() -> None:
    circuit = of_edges()
    assert circuit.units == (Unit("mlp_out.0"), Unit("embed"))  # 14, and 1 + 4
    assert circuit.scores == (14.0, 5.0)
    assert np.argwhere(circuit.edge_mask(EDGES)).tolist() == [[0, 1], [0, 4], [2, 4]]
    with pytest.raises(InvalidArgument, match="units and no edges"):
        mixed().edge_mask(EDGES)
    with pytest.raises(InvalidArgument, match="which the circuit's units do not hold"):
        Circuit(SPACE, (Unit("z.0", head=1),), (1.0,), edges=(Edge("z.1 head 0", "resid_post.1"),))


def test_what_no_card_or_file_may_say() -> None:
    for changes, match in (
        ({"name": "../up"}, "letters, digits"),
        ({"name": "a b"}, "letters, digits"),
        ({"category": "Syntax"}, "small letters"),
        ({"category": "a/../b"}, "small letters"),
        ({"version": "1a"}, "1, 1.2 or 1.2.3"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            Card(**changes)
    data = mixed().to_json()
    for changes, match in (
        ({"extra": 1}, "unknown \\['extra'\\]"),
        ({"card": {"colour": "red"}}, "unknown \\['colour'\\]"),
        ({"card": {"claims": [{"unit": "z.0"}]}}, "a claim has"),
        ({"card": {"tags": "one"}}, "list of texts"),
        ({"version": 3}, "not a circuit of ours"),
        ({"edges": [{"sender": "z.0 head 0"}]}, "damaged"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            Circuit.from_json({**data, **changes})
    with pytest.raises(InvalidArgument, match="NaN"):
        Circuit(MLPS, (Unit("mlp_out.0"),), (float("nan"),))
