"""Attribution graphs as the JSON that Neuronpedia's graph viewer opens.

Source of the schema: circuit-tracer's `frontend/graph_models.py`; of the traps: the viewer's own `formatData`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...protos.errors import InvalidArgument
from .graph import Graph, Node
from .influence import Pruned, cumulative, node_influence

__all__ = ["FEATURE_TYPES", "neuronpedia_json", "save_neuronpedia"]

FEATURE_TYPES = ("cross layer transcoder", "mlp reconstruction error", "embedding", "logit")
"""Those that the viewer tells apart; it draws any other as it does a transcoder's feature."""

Labels = Mapping[tuple[int, int], str]
"""(layer, unit) → a neuron's label."""


def neuronpedia_json(
    graph: Graph | Pruned,
    slug: str,
    *,
    scan: str = "",
    labels: Labels | None = None,
    feature_type: str = "cross layer transcoder",
) -> dict[str, Any]:
    """JSON data of a graph; a pruned one carries the cumulative influence of the whole.

    `slug` names the graph in links (letters, digits, - and _); `scan` the model as the viewer knows it (default: the
    graph's own). The viewer leaves out a neuron that is a node at more than 2/3 of the positions. Raises
    InvalidArgument for what it cannot draw: a graph without a neuron above layer 0, or a prompt of one token.
    """
    whole, influence = _with_influence(graph)
    _check(whole, slug)
    nodes = [
        _node(node, whole, share, labels or {}, feature_type)
        for node, share in zip(whole.nodes, influence, strict=True)
    ]
    _mark_target(nodes)
    threshold = graph.node_threshold if isinstance(graph, Pruned) else None
    return {
        "metadata": {
            "slug": slug,
            "scan": scan or whole.info.model,
            "transcoder_list": [],
            "prompt_tokens": list(whole.tokens),
            "prompt": whole.prompt,
            "node_threshold": threshold,
            "schema_version": 1,
            "info": {
                "creator_name": "probewire",
                "metric": whole.info.metric,
                "rules": list(whole.info.rules),
                "model_hash": whole.info.model_hash,
            },
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": _links(whole, [node["node_id"] for node in nodes]),
    }


def save_neuronpedia(
    graph: Graph | Pruned, path: str | Path, *, slug: str = "", scan: str = "", labels: Labels | None = None
) -> Path:
    """Write `neuronpedia_json` to a file; `slug` is the file's name unless given."""
    path = Path(path)
    data = neuronpedia_json(graph, slug or path.stem, scan=scan, labels=labels)
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


def _with_influence(graph: Graph | Pruned) -> tuple[Graph, list[float]]:
    if isinstance(graph, Pruned):
        return graph.graph, graph.kept.tolist()
    return graph, cumulative(node_influence(graph)).tolist()


def _check(graph: Graph, slug: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", slug):
        raise InvalidArgument(
            f"slug {slug!r}; it may have letters, digits, - and _ only, for it becomes part of a link"
        )
    if len(graph.tokens) < 2:
        raise InvalidArgument("Neuronpedia's viewer drops every node of a prompt of one token; use a longer prompt")
    if not any(node.kind == "neuron" and node.layer for node in graph.nodes):
        raise InvalidArgument(
            "Neuronpedia's viewer cannot draw a graph without a neuron above layer 0; lower the node threshold"
        )


def _node(node: Node, graph: Graph, share: float, labels: Labels, feature_type: str) -> dict[str, Any]:
    position = node.position
    row: dict[str, Any] = {
        "ctx_idx": position,
        "token_prob": node.probability or 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": "",
        "influence": share,
        "activation": node.activation,
        "score": node.score,
    }
    if node.kind == "neuron":
        layer, unit = int(node.layer or 0), int(node.unit or 0)
        # The viewer keeps one node a jsNodeId, so it must name the position too.
        row |= _named(layer, unit, position, feature=_cantor(layer, unit), kind=feature_type)
        row["clerp"] = labels.get((layer, unit), node.text)
    elif node.kind == "embedding":
        row |= _named("E", node.token, position, feature=position, kind="embedding")
    else:
        row |= _named(graph.info.n_layers + 1, node.token, position, feature=node.token, kind="logit")
        # The viewer reads the probability from behind the first "(p=", and stops at a logit without one.
        text = node.text.replace("(p=", "( p=")
        row["clerp"] = f'Output "{text}" (p={node.probability:.3f})'
        row["influence"] = None
    return row


def _named(layer: int | str, number: int | None, position: int, *, feature: int | None, kind: str) -> dict[str, Any]:
    return {
        "node_id": f"{layer}_{number}_{position}",
        "jsNodeId": f"{layer}_{number}-{position}",
        "feature": feature,
        "layer": str(layer),
        "feature_type": kind,
    }


def _mark_target(nodes: list[dict[str, Any]]) -> None:
    """The likeliest logit is the one that the viewer opens with."""
    logits = [node for node in nodes if node["feature_type"] == "logit"]
    if logits:
        max(logits, key=lambda node: node["token_prob"])["is_target_logit"] = True


def _links(graph: Graph, ids: list[str]) -> list[dict[str, Any]]:
    targets, sources = graph.adjacency.nonzero()
    return [
        {"source": ids[source], "target": ids[target], "weight": float(graph.adjacency[target, source])}
        for target, source in zip(targets.tolist(), sources.tolist(), strict=True)
    ]


def _cantor(layer: int, unit: int) -> int:
    """One number for a (layer, unit) pair, which the viewer takes apart again."""
    return (layer + unit) * (layer + unit + 1) // 2 + unit
