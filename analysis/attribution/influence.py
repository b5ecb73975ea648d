"""How much each node and edge of an attribution graph matters to the logits, and pruning by it.

Source: circuit-tracer (Ameisen et al. 2025, "Circuit tracing"), `graph.py`: rows of |adjacency| are normalised, and a
node's influence is its share of every path to the logits, each logit weighted by its probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from .graph import Graph

__all__ = ["Pruned", "cumulative", "edge_influence", "node_influence", "prune"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """What is left of a graph, and how it was chosen. Masks and scores are over the nodes of the whole graph."""

    graph: Graph
    """The nodes and edges kept."""
    nodes: Mask
    """[node]"""
    edges: Mask
    """[target, source]"""
    cumulative: Floats
    """[node]: see `cumulative`."""
    node_threshold: float
    edge_threshold: float

    @property
    def kept(self) -> Floats:
        """[node of the pruned graph]: cumulative influence in the whole graph."""
        return self.cumulative[self.nodes]

    def __repr__(self) -> str:
        return f"Pruned({self.graph!r}, of {len(self.nodes):,} nodes)"


def node_influence(graph: Graph) -> Floats:
    """[node]: p·(A + A² + …) with A the row-normalised |adjacency| and p the logits' probabilities; 0 for logits.

    Raises InvalidArgument when no logit of the graph has a probability above 0.
    """
    return _influence(_normalised(graph.adjacency), _logit_weights(graph))


def edge_influence(graph: Graph) -> Floats:
    """[target, source]: the influence of the target (of a logit: its probability) times the edge's share of its inputs."""
    return _edge_influence(graph.adjacency, _logit_weights(graph))


def cumulative(influence: Floats) -> Floats:
    """[node]: the share of all influence held by the node and those before it, most influential first; 1 where it is 0.

    A threshold of 0.8 on this keeps the fewest nodes that hold 80 % of the influence, give or take one.
    """
    influence = np.asarray(influence, dtype=np.float64)
    total = influence.sum()
    if not total:
        return np.ones_like(influence)
    order = np.argsort(-influence, kind="stable")
    shares = np.empty_like(influence)
    shares[order] = np.minimum(np.cumsum(influence[order]) / total, 1.0)
    return np.where(influence > 0, shares, 1.0)


def prune(graph: Graph, *, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Pruned:
    """Keep the nodes that hold `node_threshold` of the influence, then the edges that hold `edge_threshold` of theirs.

    Embeddings and logits always stay; a neuron left without an edge in or without one out goes, until none is.
    Raises InvalidArgument for thresholds outside 0 … 1.
    """
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0.0 <= value <= 1.0:
            raise InvalidArgument(f"prune: {name} must be in 0 … 1, got {value}")
    weights = _logit_weights(graph)
    influence = _influence(_normalised(graph.adjacency), weights)
    neurons = np.array([node.kind == "neuron" for node in graph.nodes])
    nodes = ~neurons | (influence >= _cut(influence, node_threshold))
    between = np.where(nodes[:, None] & nodes[None, :], graph.adjacency, 0.0)
    scores = _edge_influence(between, weights)
    # A cut of 0 is met by every pair; only what is an edge can stay one.
    edges = (scores >= _cut(scores.ravel(), edge_threshold)) & (between != 0)
    nodes, edges = _connected(nodes, edges, neurons)
    kept = graph.subgraph(nodes, edges)
    return Pruned(kept, nodes, edges, cumulative(influence), node_threshold, edge_threshold)


def _connected(nodes: Mask, edges: Mask, neurons: Mask) -> tuple[Mask, Mask]:
    """Without the neurons that lack an edge in or out; each that goes may orphan others."""
    while True:
        alive = nodes & (~neurons | (edges.any(axis=0) & edges.any(axis=1)))
        edges = edges & alive[:, None] & alive[None, :]
        if (alive == nodes).all():
            return nodes, edges
        nodes = alive


def _logit_weights(graph: Graph) -> Floats:
    weights = np.array([node.probability or 0.0 if node.kind == "logit" else 0.0 for node in graph.nodes])
    if not weights.any():
        raise InvalidArgument(
            "no logit of the graph has a probability above 0, so nothing has influence; add its logits"
        )
    return weights


def _normalised(adjacency: Floats) -> Floats:
    """Each row's |weights| as shares of 1; rows of zeros stay zero."""
    absolute = np.abs(adjacency)
    totals = absolute.sum(axis=1, keepdims=True)
    return np.divide(absolute, totals, out=np.zeros_like(absolute), where=totals > 0)


def _influence(shares: Floats, weights: Floats) -> Floats:
    """weights·(A + A² + …). Targets come after their sources, so one pass from the last node back sums every path."""
    influence = np.zeros_like(weights)
    for target in range(len(weights) - 1, -1, -1):
        influence += (influence[target] + weights[target]) * shares[target]
    return influence


def _edge_influence(adjacency: Floats, weights: Floats) -> Floats:
    shares = _normalised(adjacency)
    return shares * (_influence(shares, weights) + weights)[:, None]


def _cut(scores: Floats, threshold: float) -> float:
    """The smallest score to keep so that those kept hold `threshold` of the sum; inf when all are 0."""
    ranked = np.sort(scores)[::-1]
    positive = int((ranked > 0).sum())
    if not positive:
        return float("inf")
    shares = np.cumsum(ranked) / ranked.sum()
    # At a threshold of 1 rounding may leave the last share below it.
    return float(ranked[min(int(np.searchsorted(shares, threshold)), positive - 1)])
