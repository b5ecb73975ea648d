"""The JSON against the viewer's schema, and against a telling of what the viewer does with it when it opens it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.attribution.graph import Graph, Node
from probewire.analysis.attribution.influence import cumulative, node_influence, prune
from probewire.analysis.attribution.neuronpedia import neuronpedia_json, save_neuronpedia
from probewire.clients import InvalidArgument
from tests.analysis.attribution.graphs import INFO, TOKENS, paper_graph, random_graph

NODE_FIELDS: dict[str, tuple[type, ...]] = {
    "node_id": (str,),
    "feature": (int,),
    "layer": (str,),
    "ctx_idx": (int,),
    "feature_type": (str,),
    "token_prob": (float,),
    "is_target_logit": (bool,),
    "run_idx": (int,),
    "reverse_ctx_idx": (int,),
    "jsNodeId": (str,),
    "clerp": (str,),
    "influence": (float, type(None)),
    "activation": (float, type(None)),
}
METADATA: dict[str, tuple[type, ...]] = {
    "slug": (str,),
    "scan": (str,),
    "transcoder_list": (list,),
    "prompt_tokens": (list,),
    "prompt": (str,),
    "node_threshold": (float, type(None)),
    "schema_version": (int,),
}
QUERY: dict[str, tuple[type, ...]] = {
    "pinnedIds": (list,),
    "supernodes": (list,),
    "linkType": (str,),
    "clickedId": (str,),
    "sg_pos": (str,),
}


def check_fields(row: dict[str, Any], fields: dict[str, tuple[type, ...]]) -> None:
    for name, kinds in fields.items():
        assert type(row[name]) in kinds, f"{name} is {row[name]!r}"


@pytest.mark.parametrize("graph", [paper_graph(), random_graph(2), prune(random_graph(2))])
def test_the_schema(graph: Any) -> None:
    data = json.loads(json.dumps(neuronpedia_json(graph, "ioi-1"), allow_nan=False))
    assert {"metadata", "qParams", "nodes", "links"} <= set(data)
    check_fields(data["metadata"], METADATA)
    check_fields(data["qParams"], QUERY)
    for node in data["nodes"]:
        check_fields(node, NODE_FIELDS)
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(set(ids)) == len(ids)
    for link in data["links"]:
        assert set(link) == {"source", "target", "weight"}
        assert {link["source"], link["target"]} <= set(ids)
    assert [node["is_target_logit"] for node in data["nodes"]].count(True) == 1


def opened(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What the viewer's formatData keeps (its own steps; each `raise` stands where it would stop)."""
    numbers = [float(n["layer"]) for n in data["nodes"] if n["feature_type"] != "logit" and n["layer"] != "E"]
    if not max(numbers, default=0):
        raise AssertionError("No layer found")
    by_id, features = {}, {}
    for node in data["nodes"]:
        if node["feature_type"] == "logit" and node["clerp"]:
            node["logitPct"] = float(node["clerp"].split("(p=")[1].split(")")[0])
        by_id[node["jsNodeId"]] = node
        features.setdefault(f"{node['layer']}_{node['feature']}", []).append(node)
    for same in features.values():
        if len(same) > len(data["metadata"]["prompt_tokens"]) * 2 / 3:
            for node in same:
                by_id.pop(node["jsNodeId"], None)
    return list(by_id.values())


def test_the_viewer_keeps_every_node() -> None:
    graph = random_graph(4)
    assert len(opened(neuronpedia_json(graph, "x"))) == len(graph)


def test_ids_and_features() -> None:
    nodes = {node["node_id"]: node for node in neuronpedia_json(paper_graph(), "x")["nodes"]}
    assert set(nodes) == {"E_11_1", "E_13_3", "0_7_1", "2_5_3", "2_6_3", "5_11_3", "5_13_3"}
    assert nodes["E_11_1"]["layer"] == "E"
    assert nodes["5_11_3"]["clerp"] == 'Output " Mary" (p=0.800)'
    assert nodes["5_11_3"]["is_target_logit"]
    assert nodes["2_5_3"]["activation"] == -4.0


def test_features_are_cantor_pairs() -> None:
    graph = random_graph(4)
    rows = neuronpedia_json(graph, "x")["nodes"]
    for node, row in zip(graph.nodes, rows, strict=True):
        if node.kind != "neuron":
            continue
        total = int((np.sqrt(8 * row["feature"] + 1) - 1) // 2)  # the inverse pairing
        unit = row["feature"] - total * (total + 1) // 2
        assert (total - unit, unit) == (node.layer, node.unit)


def test_a_token_that_looks_like_a_probability() -> None:
    graph = paper_graph()
    odd = replace(graph.nodes[5], text=" (p=oops)")
    nodes = [*graph.nodes[:5], odd, graph.nodes[6]]
    changed = Graph(graph.prompt, graph.token_ids, graph.tokens, nodes, graph.adjacency, graph.info)
    logits = [node for node in opened(neuronpedia_json(changed, "x")) if node["feature_type"] == "logit"]
    assert [node["logitPct"] for node in logits] == [0.8, 0.1]


def test_links_carry_direct_effects_and_influence_is_cumulative() -> None:
    graph = paper_graph()
    data = neuronpedia_json(graph, "x")
    assert {"source": "2_5_3", "target": "5_11_3", "weight": 6.0} in data["links"]
    assert len(data["links"]) == graph.n_edges
    shares = cumulative(node_influence(graph))
    for node, share, row in zip(graph.nodes, shares, data["nodes"], strict=True):
        assert row["influence"] == (None if node.kind == "logit" else pytest.approx(share))


def test_a_pruned_graph_keeps_the_influence_of_the_whole() -> None:
    whole = random_graph(2)
    shares = {node.name: share for node, share in zip(whole.nodes, cumulative(node_influence(whole)), strict=True)}
    pruned = prune(whole, node_threshold=0.7)
    data = neuronpedia_json(pruned, "x")
    assert data["metadata"]["node_threshold"] == 0.7
    for node, row in zip(pruned.graph.nodes, data["nodes"], strict=True):
        if node.kind != "logit":
            assert row["influence"] == pytest.approx(shares[node.name])


def test_labels_and_the_file(tmp_path: Path) -> None:
    path = save_neuronpedia(paper_graph(), tmp_path / "ioi.json", scan="smollm2", labels={(2, 5): "names"})
    data = json.loads(path.read_text())
    assert data["metadata"]["slug"] == "ioi"
    assert data["metadata"]["scan"] == "smollm2"
    assert {node["clerp"] for node in data["nodes"] if node["layer"] == "2"} == {"names", ""}


def test_what_the_viewer_cannot_draw_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="letters, digits"):
        neuronpedia_json(paper_graph(), "a graph")
    flat = Graph("x", (10, 11, 12, 13), TOKENS, [Node.logit(3, 1, "a", probability=0.5)], np.zeros((1, 1)), INFO)
    with pytest.raises(InvalidArgument, match="above layer 0"):
        neuronpedia_json(flat, "x")
    short = Graph("x", (10,), ("x",), [Node.logit(0, 1, "a", probability=0.5)], np.zeros((1, 1)), INFO)
    with pytest.raises(InvalidArgument, match="longer prompt"):
        neuronpedia_json(short, "x")
