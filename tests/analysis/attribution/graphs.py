"""Graphs made up for tests: a small one worked out on paper, and random ones of any size."""

from __future__ import annotations

import numpy as np

from probewire.analysis.attribution.graph import Graph, GraphInfo, Node

TOKENS = ("When", " Mary", " and", " John")
INFO = GraphInfo("tiny", 4, "logit ' Mary' at the end", 5.0, "abc", ("ln", "ah"), 0.005, {"dtype": "float64"})


def paper_graph() -> Graph:
    """Two embeddings, three neurons and two logits; the third neuron has an input and no output.

    Shares of inputs (|rows| over their sums): n0 ← e1; n1 ← e1 ¼, n0 ¾; n2 ← e3; Mary ← n1 ½, e3 ½; John ← e3.
    """
    nodes = (
        Node.embedding(1, 11, " Mary", score=2.0),
        Node.embedding(3, 13, " John", score=-1.0),
        Node.neuron(0, 1, 7, activation=2.0, score=1.0),
        Node.neuron(2, 3, 5, activation=-4.0, score=3.0),
        Node.neuron(2, 3, 6, activation=1.0, score=0.1),
        Node.logit(3, 11, " Mary", probability=0.8, activation=10.0, score=5.0),
        Node.logit(3, 13, " John", probability=0.1, activation=3.0, score=-1.0),
    )
    adjacency = np.zeros((7, 7))
    adjacency[2, 0] = 2.0
    adjacency[3, 0], adjacency[3, 2] = -1.0, -3.0
    adjacency[4, 1] = 1.0
    adjacency[5, 3], adjacency[5, 1] = 6.0, -6.0
    adjacency[6, 1] = 3.0
    return Graph("When Mary and John", (10, 11, 12, 13), TOKENS, nodes, adjacency, INFO)


def random_graph(
    seed: int = 0, *, n_neurons: int = 40, n_layers: int = 6, n_tokens: int = 5, density: float = 0.3
) -> Graph:
    """Any graph that a causal model could have."""
    rng = np.random.default_rng(seed)
    tokens = tuple(f" t{index}" for index in range(n_tokens))
    nodes = [Node.embedding(index, 100 + index, text, float(rng.normal())) for index, text in enumerate(tokens)]
    places = sorted({tuple(rng.integers((n_layers, n_tokens, 96)).tolist()) for _ in range(n_neurons)})
    nodes += [Node.neuron(*place, activation=float(rng.normal()), score=float(rng.normal())) for place in places]
    for token, probability in ((7, 0.6), (8, 0.3), (9, 0.05)):
        nodes.append(Node.logit(n_tokens - 1, token, f" w{token}", probability=probability, activation=4.0))
    depth, position = (np.array([getattr(node, name) for node in nodes]) for name in ("depth", "position"))
    allowed = (depth[None] < depth[:, None]) & (position[None] <= position[:, None])
    chosen = allowed & (rng.random(allowed.shape) < density)
    adjacency = np.where(chosen, rng.normal(size=allowed.shape), 0.0)
    return Graph(
        "".join(tokens), range(100, 100 + n_tokens), tokens, nodes, adjacency, GraphInfo("tiny", n_layers, "m")
    )
