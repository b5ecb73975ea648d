"""Influence against enumerated paths, and pruning against a second telling of circuit-tracer's rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probewire.analysis.attribution.graph import Graph
from probewire.analysis.attribution.influence import cumulative, edge_influence, node_influence, prune
from probewire.clients import InvalidArgument
from tests.analysis.attribution.graphs import paper_graph, random_graph


def test_influence_on_paper() -> None:
    """Mary .8: half from n1, half from e3; n1: a quarter from e1, the rest from n0, which is all e1. John .1: all e3."""
    found = node_influence(paper_graph())
    expected = [0.4 * 0.25 + 0.4 * 0.75, 0.4 + 0.1, 0.3, 0.4, 0.0, 0.0, 0.0]
    assert found == pytest.approx(expected, abs=1e-15)


def test_edge_influence_on_paper() -> None:
    edges = edge_influence(paper_graph())
    assert edges[5, 3] == pytest.approx(0.4)  # .8 · ½
    assert edges[6, 1] == pytest.approx(0.1)
    assert edges[3, 2] == pytest.approx(0.3)  # n1's .4 · ¾
    assert edges[4].sum() == 0.0  # into a neuron without influence


@pytest.mark.parametrize("seed", range(4))
def test_influence_is_the_sum_over_all_paths(seed: int) -> None:
    graph = random_graph(seed, n_neurons=9, n_layers=4)
    shares = np.abs(graph.adjacency)
    totals = shares.sum(axis=1, keepdims=True)
    shares = shares / np.where(totals == 0, 1, totals)

    def along_paths(node: int) -> float:
        """Of every path from a node up to a logit, the product of shares, times the logit's probability."""
        reached = 0.0
        for target in np.flatnonzero(shares[:, node]):
            arrived = graph.nodes[target].probability or 0.0
            reached += shares[target, node] * (arrived + along_paths(int(target)))
        return reached

    assert node_influence(graph) == pytest.approx([along_paths(node) for node in range(len(graph))], abs=1e-12)
    edges = edge_influence(graph)
    assert edges.sum(axis=0) == pytest.approx(node_influence(graph), abs=1e-12), "what leaves a node is its influence"


def test_cumulative() -> None:
    assert cumulative(np.array([1.0, 0.0, 6.0, 3.0])).tolist() == pytest.approx([1.0, 1.0, 0.6, 0.9])
    assert cumulative(np.zeros(3)).tolist() == [1.0, 1.0, 1.0]


def pruned_by_the_book(graph: Graph, node_threshold: float, edge_threshold: float) -> tuple[set[str], set[str]]:
    """circuit-tracer's prune_graph in its own order of steps, with the matrix series written out and plain loops."""
    n = len(graph)
    weights = np.array([node.probability if node.kind == "logit" else 0.0 for node in graph.nodes])
    fixed = [index for index in range(n) if graph.nodes[index].kind != "neuron"]

    def shares(matrix: np.ndarray) -> np.ndarray:
        return np.abs(matrix) / np.clip(np.abs(matrix).sum(axis=1, keepdims=True), 1e-10, None)

    def series(matrix: np.ndarray) -> np.ndarray:
        power, total = weights @ matrix, np.zeros(n)
        while power.any():
            total, power = total + power, power @ matrix
        return total

    def cut(scores: np.ndarray, threshold: float) -> float:
        held = 0.0
        for score in sorted(scores.ravel().tolist(), reverse=True):
            held += score / scores.sum()
            if held >= threshold - 1e-12:
                return score
        return min(score for score in scores.ravel().tolist() if score > 0)

    influence = series(shares(graph.adjacency))
    keep = {index for index in range(n) if influence[index] >= cut(influence, node_threshold)} | set(fixed)
    between = np.array([[graph.adjacency[t, s] * (t in keep and s in keep) for s in range(n)] for t in range(n)])
    scores = shares(between) * (series(shares(between)) + weights)[:, None]
    level = cut(scores, edge_threshold)
    edges = {(t, s) for t in range(n) for s in range(n) if between[t, s] and scores[t, s] >= level}
    while True:
        edges = {(t, s) for t, s in edges if t in keep and s in keep}
        lonely = {
            i for i in keep - set(fixed) if not any(s == i for _, s in edges) or not any(t == i for t, _ in edges)
        }
        if not lonely:
            break
        keep -= lonely
    names = [node.name for node in graph.nodes]
    return {names[i] for i in keep}, {f"{names[s]}>{names[t]}" for t, s in edges}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("node_threshold", "edge_threshold"), [(0.8, 0.98), (0.5, 0.7), (0.95, 0.3)])
def test_pruning_follows_circuit_tracer(seed: int, node_threshold: float, edge_threshold: float) -> None:
    graph = random_graph(seed, density=0.25)
    found = prune(graph, node_threshold=node_threshold, edge_threshold=edge_threshold)
    names = {node.name for node in found.graph.nodes}
    targets, sources = np.nonzero(found.graph.adjacency)
    edges = {f"{found.graph.nodes[s].name}>{found.graph.nodes[t].name}" for t, s in zip(targets, sources, strict=True)}
    assert (names, edges) == pruned_by_the_book(graph, node_threshold, edge_threshold)
    assert len(names) < len(graph), "the case prunes something"


def test_pruning_on_paper() -> None:
    found = prune(paper_graph(), node_threshold=1.0, edge_threshold=1.0)
    assert "L2.p3.n6" not in {node.name for node in found.graph.nodes}, "it leads nowhere"
    assert found.graph.n_edges == 6
    assert found.kept.tolist() == pytest.approx(found.cumulative[found.nodes].tolist())


def test_without_neurons_worth_keeping_tokens_and_logits_stay() -> None:
    found = prune(paper_graph(), node_threshold=0.0, edge_threshold=0.0)
    kinds = [node.kind for node in found.graph.nodes]
    assert kinds.count("embedding") == 2
    assert kinds.count("logit") == 2


def test_bad_input() -> None:
    with pytest.raises(InvalidArgument, match="node_threshold must be in 0 … 1"):
        prune(paper_graph(), node_threshold=1.2)
    graph = paper_graph()
    nodes = [replace(node, probability=0.0) if node.kind == "logit" else node for node in graph.nodes]
    with pytest.raises(InvalidArgument, match="probability above 0"):
        node_influence(Graph(graph.prompt, graph.token_ids, graph.tokens, nodes, graph.adjacency, graph.info))
