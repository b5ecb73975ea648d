"""An attribution graph as one HTML file that needs no network: hover, pin, search, and sliders for nodes and links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..page import page
from .graph import Graph, Node
from .influence import Pruned, cumulative, edge_influence, node_influence

__all__ = ["graph_page"]

LINKS_AT_FIRST = 400
"""Drawn before anyone touches the slider: more are a thicket."""


def graph_page(graph: Graph | Pruned, path: str | Path | None = None, *, title: str = "") -> str:
    """The page's text, written to `path` where there is one.

    The sliders keep nodes and links by cumulative influence, as `prune` does; of a pruned graph, nodes by their
    influence in the whole. Up to a thousand nodes stay quick. Raises InvalidArgument when no logit has a probability.
    """
    title = title or _title(graph)
    return page(__package__ or "probewire.analysis.attribution", "graph_page", title, _data(graph, title), path)


def _title(graph: Graph | Pruned) -> str:
    info = (graph.graph if isinstance(graph, Pruned) else graph).info
    return f"Attribution graph of {info.model}"


def _data(graph: Graph | Pruned, title: str) -> dict[str, Any]:
    whole = graph.graph if isinstance(graph, Pruned) else graph
    shares = graph.kept if isinstance(graph, Pruned) else cumulative(node_influence(graph))
    links, threshold = _links(whole)
    info = whole.info
    return {
        "title": title,
        "prompt": whole.prompt,
        "tokens": list(whole.tokens),
        "n_layers": info.n_layers,
        "info": {"model": info.model, "metric": info.metric, "value": info.value, "rules": list(info.rules)},
        "node_threshold": 1.0 if isinstance(graph, Pruned) else 0.8,
        "link_threshold": threshold,
        "nodes": [_node(node, float(share)) for node, share in zip(whole.nodes, shares, strict=True)],
        "links": links,
    }


def _node(node: Node, share: float) -> dict[str, Any]:
    return {
        "kind": node.kind,
        "name": node.name,
        "position": node.position,
        "layer": node.layer,
        "unit": node.unit,
        "text": "" if node.kind == "neuron" else node.text,
        "note": node.text if node.kind == "neuron" else "",
        "score": _short(node.score),
        "activation": None if node.activation is None else _short(node.activation),
        "probability": node.probability,
        "cumulative": round(share, 5),
    }


def _links(graph: Graph) -> tuple[list[list[float]], float]:
    """[source, target, weight, flow, share of the target's inputs, cumulative influence], most influential first."""
    targets, sources = np.nonzero(graph.adjacency)
    if not len(targets):
        return [], 1.0
    influence = edge_influence(graph)[targets, sources]
    weights, flows = graph.adjacency[targets, sources], graph.flows()[targets, sources]
    shares = np.abs(weights) / np.abs(graph.adjacency).sum(axis=1)[targets]
    held = cumulative(influence)
    order = np.lexsort((-np.abs(weights), -influence))
    rows = [
        [
            int(sources[i]),
            int(targets[i]),
            _short(weights[i]),
            _short(flows[i]),
            _short(shares[i]),
            round(float(held[i]), 5),
        ]
        for i in order.tolist()
    ]
    return rows, _first_threshold(held[order])


def _first_threshold(held: NDArray[np.float64]) -> float:
    """Of the slider: what shows at most LINKS_AT_FIRST links, and at most 98 % of the influence."""
    within = float(held[min(len(held), LINKS_AT_FIRST) - 1])
    return min(0.98, float(np.floor(within * 200) / 200)) or 0.005


def _short(value: Any) -> float:
    """Six digits are more than the page shows."""
    return float(f"{float(value):.6g}")
