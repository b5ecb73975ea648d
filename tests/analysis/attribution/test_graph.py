"""The graph value: what it refuses, what it reads, and that a file brings back the very same graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.attribution.graph import Graph, Node
from probewire.clients import InvalidArgument
from tests.analysis.attribution.graphs import INFO, TOKENS, paper_graph, random_graph


def graph_of(nodes: list[Node], adjacency: np.ndarray | None = None) -> Graph:
    adjacency = np.zeros((len(nodes), len(nodes))) if adjacency is None else adjacency
    return Graph("When Mary and John", (10, 11, 12, 13), TOKENS, nodes, adjacency, INFO)


EMBEDDING, NEURON = Node.embedding(1, 11, " Mary"), Node.neuron(0, 1, 7, activation=1.0)
LOGIT = Node.logit(3, 11, " Mary", probability=0.8)


def test_a_file_brings_back_the_same_graph(tmp_path: Path) -> None:
    for graph in (paper_graph(), random_graph(3)):
        again = Graph.load(graph.save(tmp_path / "graph.json"))
        assert again.nodes == graph.nodes
        assert np.array_equal(again.adjacency, graph.adjacency)  # to the last bit
        assert (again.prompt, again.token_ids, again.tokens) == (graph.prompt, graph.token_ids, graph.tokens)
        assert again.info == graph.info


def test_what_is_not_a_graph_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    good = paper_graph().to_json()
    damaged = {**good, "edges": [[99, 0, 1.0]]}
    wrong = [("{", "not JSON"), ("[]", "holds a list"), ('{"format": "other"}', "not a graph of ours")]
    wrong += [(json.dumps({**good, "version": 2}), "version 2"), (json.dumps(damaged), "damaged")]
    wrong += [(json.dumps({key: value for key, value in good.items() if key != "nodes"}), "damaged")]
    for text, message in wrong:
        path.write_text(text)
        with pytest.raises(InvalidArgument, match=message):
            Graph.load(path)


def test_an_edge_must_go_forward() -> None:
    later = Node.neuron(2, 3, 5, activation=1.0)
    backward = np.zeros((3, 3))
    backward[1, 2] = 1.0  # from the later layer into the earlier
    with pytest.raises(InvalidArgument, match=r"edge from L2\.p3\.n5 to L0\.p1\.n7"):
        graph_of([EMBEDDING, NEURON, later], backward)
    to_the_left = np.zeros((2, 2))
    to_the_left[1, 0] = 1.0
    with pytest.raises(InvalidArgument, match="comes no later"):
        graph_of([Node.embedding(3, 13, " John"), NEURON], to_the_left)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "at least one node"),
        ([NEURON, EMBEDDING], "Graph.sorted"),
        ([EMBEDDING, EMBEDDING], "there twice"),
        ([Node.embedding(4, 1, "x")], "the prompt has 4"),
        ([Node.neuron(4, 0, 0, activation=1.0)], "layer 4 of 4"),
    ],
)
def test_nodes_that_do_not_fit_are_refused(nodes: list[Node], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        graph_of(nodes)


def test_a_wrong_adjacency_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"needs? \[2, 2\]"):
        graph_of([EMBEDDING, NEURON], np.zeros((3, 3)))
    with pytest.raises(InvalidArgument, match="NaN"):
        graph_of([EMBEDDING, NEURON], np.array([[0, 0], [np.nan, 0]]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "feature", "position": 0}, "one of embedding, neuron, logit"),
        ({"kind": "neuron", "position": 0, "layer": 1, "unit": 2}, "needs activation"),
        ({"kind": "embedding", "position": -1, "token": 3}, "0 or more"),
        ({"kind": "logit", "position": 0, "token": 3, "probability": 1.5}, "in 0 … 1"),
    ],
)
def test_a_wrong_node_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Node(**fields)


def test_sorted_puts_nodes_and_edges_in_order() -> None:
    graph = random_graph(5)
    shuffled = np.random.default_rng(1).permutation(len(graph))
    nodes = [graph.nodes[index] for index in shuffled]
    adjacency = graph.adjacency[np.ix_(shuffled, shuffled)]
    again = Graph.sorted(graph.prompt, graph.token_ids, graph.tokens, nodes, adjacency, graph.info)
    edges = [
        {(g.nodes[t].name, g.nodes[s].name, g.adjacency[t, s]) for t, s in np.argwhere(g.adjacency)}
        for g in (graph, again)
    ]
    assert edges[0] == edges[1]


def test_a_subgraph_keeps_the_edges_between_its_nodes() -> None:
    graph = paper_graph()
    keep = np.array([True, False, True, True, False, True, False])
    part = graph.subgraph(keep)
    assert [node.name for node in part.nodes] == ["embed.1", "L0.p1.n7", "L2.p3.n5", "logit.11"]
    assert part.n_edges == 4
    assert part.adjacency[3, 2] == 6.0
    chosen = graph.adjacency > 0
    assert graph.subgraph(keep, chosen).n_edges == 2
    with pytest.raises(InvalidArgument, match="7 nodes"):
        graph.subgraph(keep[:3])


def test_flows_of_a_complete_row_sum_to_the_score() -> None:
    """n1 has activation −4 = −1 − 3 and score 3: its inputs hand over 3 in the same proportion."""
    flows = paper_graph().flows()
    assert flows[3, 0] == pytest.approx(0.75, rel=1e-5)
    assert flows[3, 2] == pytest.approx(2.25, rel=1e-5)
    assert flows[3].sum() == pytest.approx(3.0, rel=1e-5)
    silent = replace(paper_graph().nodes[2], activation=0.0)
    graph = paper_graph()
    nodes = [silent if node.name == silent.name else node for node in graph.nodes]
    assert not graph_of(nodes, graph.adjacency).flows()[2].any(), "a neuron at 0 hands nothing over, and is no NaN"


def test_it_says_what_it_is() -> None:
    graph = paper_graph()
    assert "2 embeddings, 3 neurons, 2 logits, 7 edges" in repr(graph)
    assert graph.label(0) == "' Mary' @1"
    assert graph.label(3) == "layer 2 neuron 5 @3"
    assert graph.label(5) == "logit ' Mary'"
    assert graph.indices("neuron").tolist() == [2, 3, 4]
    assert LOGIT.depth > NEURON.depth > EMBEDDING.depth
