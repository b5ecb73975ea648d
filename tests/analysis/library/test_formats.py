"""Files of other tools: EAP-IG's own, ACDC's edges, NeuroScope's entries, Neuronpedia's graphs, tables; pickles refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.attribution.neuronpedia import neuronpedia_json
from probewire.analysis.circuits import Circuit, Edge, JoinedSpace, Origin, Space, Unit
from probewire.analysis.library import CircuitLibrary, read_circuit, write_circuit
from probewire.analysis.library.formats.eap_ig import eap_ig_circuit, eap_ig_json
from probewire.analysis.library.formats.shape import Shape
from probewire.clients import Client, InvalidArgument, NotFound
from tests.analysis.attribution.graphs import paper_graph
from tests.analysis.library.conftest import NAMES, NUMBERS

RECORDED = Path(__file__).parent / "eap_ig_recorded.json"
"""Written by hannamw/EAP-IG's `Graph.to_json` (2 layers of 2 heads, scores drawn at random, the 14 best edges, pruned)."""
SHAPE = Shape(2, 2, 4)


def saved(tmp_path: Path, data: Any, name: str = "file.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(data))
    return path


# ---- EAP-IG and MIB ----


def test_a_graph_that_eap_ig_wrote_is_read() -> None:
    circuit = read_circuit(RECORDED)
    graph = json.loads(RECORDED.read_text())
    assert {unit.name for unit in circuit.units} == {"embed", "z.0 head 0", "mlp_out.0", "z.1 head 1"}
    edges = {(edge.sender, edge.receiver): edge.score for edge in circuit.edges}
    assert edges == {
        ("embed", "attn_resid.0"): graph["edges"]["input->a0.h0<q>"][
            "score"
        ],  # −1.13 is stronger than .85 by the value
        ("z.0 head 0", "mlp_resid.0"): graph["edges"]["a0.h0->m0"]["score"],
        ("z.0 head 0", "attn_resid.1"): graph["edges"]["a0.h0->a1.h1<q>"]["score"],
        ("embed", "resid_post.1"): graph["edges"]["input->logits"]["score"],
        ("z.0 head 0", "resid_post.1"): graph["edges"]["a0.h0->logits"]["score"],
        ("mlp_out.0", "resid_post.1"): graph["edges"]["m0->logits"]["score"],
        ("z.1 head 1", "resid_post.1"): graph["edges"]["a1.h1->logits"]["score"],
    }
    assert "1 edges into other heads" in (circuit.origin.notes or {})["edges"]
    assert circuit.scores[0] == pytest.approx(edges["mlp_out.0", "resid_post.1"])


def test_ours_has_every_node_and_edge_that_eap_ig_looks_up() -> None:
    theirs = json.loads(RECORDED.read_text())
    ours = eap_ig_json(read_circuit(RECORDED), SHAPE)
    assert ours["cfg"] == theirs["cfg"]
    assert list(ours["nodes"]) == list(theirs["nodes"])
    assert set(ours["edges"]) == set(theirs["edges"])
    assert {n: v["in_graph"] for n, v in ours["nodes"].items()} == {
        n: v["in_graph"] for n, v in theirs["nodes"].items()
    }
    lost = {name for name, edge in theirs["edges"].items() if edge["in_graph"] and not ours["edges"][name]["in_graph"]}
    assert lost == set(), "an edge into one of q, k and v becomes all three"
    again = eap_ig_circuit(json.loads(json.dumps(ours)))
    assert {(e.sender, e.receiver) for e in again.edges} == {
        (e.sender, e.receiver) for e in read_circuit(RECORDED).edges
    }


def test_a_parallel_model_has_no_edges_from_a_layers_heads_to_its_mlp() -> None:
    circuit = eap_ig_circuit(json.loads(RECORDED.read_text()))
    parallel = Circuit(circuit.space, circuit.units, circuit.scores)
    edges = eap_ig_json(parallel, Shape(2, 2, 4, parallel=True))["edges"]
    assert "a0.h0->m0" not in edges
    assert "a0.h0->m1" in edges
    assert edges["a0.h0->a1.h1<k>"]["in_graph"], "without edges of its own a circuit has all between its nodes"
    assert not edges["a0.h1->a1.h1<k>"]["in_graph"]


def test_nodes_of_older_files_unscored_ones_and_parts(tmp_path: Path) -> None:
    data = json.loads(RECORDED.read_text())
    data["nodes"] = {name: told["in_graph"] for name, told in data["nodes"].items()}
    assert read_circuit(saved(tmp_path, data)).units == read_circuit(RECORDED).units
    data["nodes"]["m0"] = {"in_graph": True, "score": float("nan"), "neurons": [True, False, True, True]}
    notes = read_circuit(saved(tmp_path, data)).origin.notes or {}
    assert notes["neurons"].startswith("1 nodes held only some")
    assert notes["unscored"].startswith("1 nodes")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cfg": {"n_layers": 2}}, "cfg has n_layers"),
        ({"nodes": {"a9.h0": {"in_graph": True}}}, "'a9.h0' is no node of a graph of 2 layers and 2 heads"),
        ({"edges": {"input=>m0": {"in_graph": True, "score": 1}}}, "is no edge of such a graph"),
        ({"edges": {"m0->input": {"in_graph": True, "score": 1}}}, "nothing enters the input"),
        ({"edges": {"input->m0": {"in_graph": True}}}, "is damaged: KeyError"),
        ({"nodes": {}, "edges": {}}, "no node and no edge"),
    ],
)
def test_graphs_that_are_wrong(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        read_circuit(saved(tmp_path, {**json.loads(RECORDED.read_text()), **change}))


def test_what_eap_ig_has_no_place_for(tiny: Client, tmp_path: Path) -> None:
    info = tiny.describe()
    neurons = Circuit(Space(("mlp_act.0",), None, "unit", 96), (Unit("mlp_act.0", unit=3),), (1.0,))
    placed = Circuit(Space(("z.0",), 5, "head", 4), (Unit("z.0", 2, head=1),), (1.0,))
    for circuit, match in ((neurons, "has no place in such a graph"), (placed, "has no positions")):
        with pytest.raises(InvalidArgument, match=match):
            write_circuit(circuit, tmp_path / "x.json", kind="eap-ig", info=info)
    with pytest.raises(InvalidArgument, match="give info="):
        write_circuit(NAMES, tmp_path / "x.json", kind="eap-ig")
    with pytest.raises(InvalidArgument, match="of 2 layers with 2 heads, the model has 3 with 4"):
        read_circuit(RECORDED, info=info)
    path = write_circuit(NAMES, tmp_path / "x.json", kind="eap-ig", info=info)
    back = read_circuit(path, info=info)
    assert set(back.units) == set(NAMES.units)
    assert back.origin.model_hash == info.model_hash


# ---- pickles ----


def test_pickles_are_refused_unopened_with_the_way_to_json(tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'touch opened'\ntR."
    for name, way in (("c.pt", "Graph.from_pt("), ("edges.pkl", "pickle.load(open("), ("x.pickle", "json.dump(")):
        path = tmp_path / name
        path.write_bytes(bomb)
        with pytest.raises(InvalidArgument, match="is a pickle") as raised:
            read_circuit(path)
        assert way in raised.value.message
        assert raised.value.message.count("\n    ") == 2


# ---- ACDC ----


def test_acdcs_edges_as_json(tiny: Client, tmp_path: Path) -> None:
    head = [None, None, 2]
    rows = [
        [["blocks.1.hook_mlp_in", [None], "blocks.0.attn.hook_result", head], 0.5],
        [["blocks.1.hook_q_input", head, "blocks.0.hook_mlp_out", [None]], 0.2],
        [["blocks.1.hook_k_input", head, "blocks.0.hook_mlp_out", [None]], -0.3],
        [["blocks.2.hook_resid_post", [None], "hook_embed", [None]], 0.1],
        [["blocks.1.attn.hook_q", head, "blocks.1.hook_q_input", head], 9.0],
    ]
    circuit = read_circuit(saved(tmp_path, rows), info=tiny.describe())
    assert set(circuit.edges) == {
        Edge("z.0 head 2", "mlp_resid.1", 0.5),
        Edge("mlp_out.0", "attn_resid.1", -0.3),
        Edge("embed", "resid_post.2", 0.1),
    }
    assert isinstance(circuit.space, JoinedSpace)
    with pytest.raises(InvalidArgument, match="give info="):
        read_circuit(saved(tmp_path, rows))


# ---- NeuroScope ----


def test_neuroscopes_entry_both_ways(tmp_path: Path) -> None:
    path = write_circuit(NAMES, tmp_path / "n.json", kind="neuroscope")
    entry = json.loads(path.read_text())
    assert set(entry) == {"circuit", "version", "tags", "author", "references", "performance_metrics"}
    assert set(entry["circuit"]) >= {
        "id",
        "name",
        "phenomenon",
        "layers",
        "components",
        "confidence",
        "validation_status",
    }
    assert entry["circuit"]["components"][0] == {
        "type": "attention",
        "layer": 2,
        "component_id": "z.2 head 3",
        "weight": 11.0,
        "metadata": {"site": "z.2", "head": 3},
    }
    assert read_circuit(path).to_json() == NAMES.to_json()


def test_an_entry_that_neuroscope_wrote(tiny: Client, tmp_path: Path) -> None:
    entry = {
        "circuit": {
            "id": "c1",
            "name": "Indirect objects!",
            "description": "as found",
            "phenomenon": "ioi",
            "layers": [0, 1],
            "components": [
                {"type": "attention", "layer": 1, "component_id": "head_3", "weight": 0.5},
                {"type": "mlp", "layer": 0, "component_id": "mlp_0"},
                {"type": "mlp", "layer": 2, "component_id": "neuron_12", "weight": 0.9},
            ],
            "confidence": 0.9,
            "metadata": {},
            "validation_status": "pending",
            "created_at": "2025-01-01",
            "updated_at": "2025-01-01",
        },
        "version": "1.0.0",
        "tags": ["ioi"],
    }
    circuit = read_circuit(saved(tmp_path, entry), info=tiny.describe())
    assert [unit.name for unit in circuit.units] == ["mlp_act.2 #12", "z.1 head 3", "mlp_out.0"]
    assert (circuit.card.name, circuit.card.version, circuit.card.tags) == ("Indirect-objects", "1.0.0", ("ioi",))
    assert circuit.origin.faithfulness is None, "somebody's confidence is no faithfulness"
    assert (circuit.origin.notes or {})["confidence"] == "0.9"
    with pytest.raises(InvalidArgument, match="needs the number of"):
        read_circuit(saved(tmp_path, entry))
    entry["circuit"]["components"][0]["component_id"] = "neuron_3"  # type: ignore[index]
    with pytest.raises(InvalidArgument, match="component 'neuron_3' of type 'attention'"):
        read_circuit(saved(tmp_path, entry), info=tiny.describe())


# ---- Neuronpedia ----


def test_a_graph_of_neurons(tiny: Client, tmp_path: Path) -> None:
    data = neuronpedia_json(paper_graph(), "paper")
    circuit = read_circuit(saved(tmp_path, data), info=tiny.describe())
    assert [unit.name for unit in circuit.units] == ["mlp_act.2 #5 @3", "mlp_act.0 #7 @1", "mlp_act.2 #6 @3"]
    assert circuit.scores == (3.0, 1.0, 0.1)
    assert (circuit.space.n_tokens, circuit.origin.metric) == (4, "logit ' Mary' at the end")
    data["qParams"] |= {"pinnedIds": ["0_7_1"], "supernodes": [["first names", "0_7_1"]]}
    pinned = read_circuit(saved(tmp_path, data), info=tiny.describe())
    assert [unit.name for unit in pinned.units] == ["mlp_act.0 #7 @1"]
    assert pinned.card.tags == ("first names",)
    data["metadata"]["transcoder_list"] = ["gemma-scope"]
    with pytest.raises(InvalidArgument, match=r"those of transcoders \(gemma-scope\)"):
        read_circuit(saved(tmp_path, data), info=tiny.describe())


# ---- tables, and what is none of these ----


def test_tables(tiny: Client, tmp_path: Path) -> None:
    path = write_circuit(NAMES, tmp_path / "units.csv")
    assert path.read_text().splitlines()[:2] == ["site,position,head,unit,score", "z.2,,3,,11.0"]
    back = read_circuit(path, info=tiny.describe())
    assert (back.units, back.scores, back.space.size) == (NAMES.units, NAMES.scores, 12)
    assert read_circuit(path, space=NAMES.space, origin=Origin(model="m")).origin.model == "m"
    with pytest.raises(InvalidArgument, match="does not say what its units were chosen from"):
        read_circuit(path)
    for text, match in (
        ("", "has the columns"),
        ("site,colour\nz.0,red\n", "has the columns"),
        ("site,head\nz.0,x\n", "line 2"),
        ("site,head\nnowhere.0,1\n", "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidArgument, match=match):
            read_circuit(path, info=tiny.describe())


def test_what_is_none_of_these(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_circuit(tmp_path / "none.json")
    for text, match in (
        ("[1, 2]", "no circuit that can be read"),
        ("nothing", "is not JSON"),
        ('{"a": 1}', "no circuit"),
    ):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(InvalidArgument, match=match):
            read_circuit(path)
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgument, match="is not a text"):
        read_circuit(tmp_path / "x.json")
    with pytest.raises(InvalidArgument, match="allowed: probewire, eap-ig, neuroscope, csv"):
        write_circuit(NAMES, tmp_path / "x", kind="pt")


def test_a_library_takes_and_gives_them(tiny: Client, folder: Path, tmp_path: Path) -> None:
    library = CircuitLibrary(folder)
    library.add(NUMBERS)
    path = library.export("greater-than", tmp_path / "g.csv")
    circuit = library.import_(path, name="from-a-table", category="imported", info=tiny.describe())
    assert library.get("from-a-table").units == circuit.units == NUMBERS.units
