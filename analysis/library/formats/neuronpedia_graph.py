"""Attribution graphs of Neuronpedia's viewer, read as circuits of neurons (writing: analysis/attribution/neuronpedia.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ....protos.errors import InvalidArgument
from ...circuits import Card, Circuit, Origin, Space, Unit
from .shape import Shape

__all__ = ["is_neuronpedia", "neuronpedia_circuit"]


def is_neuronpedia(data: Any) -> bool:
    """Whether JSON data looks like such a graph."""
    return isinstance(data, Mapping) and {"metadata", "nodes", "links"} <= set(cast("Mapping[str, Any]", data))


def neuronpedia_circuit(
    data: Mapping[str, Any], shape: Shape, origin: Origin | None = None, *, influence: float | None = None
) -> Circuit:
    """The neurons of a graph: those that the user pinned, or, where none is, all up to a cumulative `influence`.

    Positions are kept apart; supernodes become tags. Scores are each neuron's own share of influence. Raises
    InvalidArgument for graphs of transcoders, whose features are coordinates of no site.
    """
    told: Mapping[str, Any] = data["metadata"]
    info: Mapping[str, Any] = told.get("info") or {}
    maker = info.get("creator_name")
    if told.get("transcoder_list") or maker != "probewire":
        raise InvalidArgument(
            f"this graph's features are those of transcoders ({', '.join(told.get('transcoder_list') or []) or maker or 'unnamed'}), "
            "and a circuit's units are neurons and heads of the model itself; only graphs of neurons can be read"
        )
    shown: Mapping[str, Any] = data.get("qParams") or {}
    supernodes: Sequence[Any] = shown.get("supernodes") or ()
    pinned = set(shown.get("pinnedIds") or ())
    neurons = [node for node in data["nodes"] if "_" in node["node_id"] and _is_neuron(node)]
    if pinned:
        kept = [node for node in neurons if node["node_id"] in pinned]
    else:
        bound = 1.0 if influence is None else influence
        kept = [node for node in neurons if (node.get("influence") or 0.0) <= bound]
    if not kept:
        raise InvalidArgument(
            "no neuron of this graph is pinned, or within the influence; pin some, or raise influence="
        )
    scores: dict[Unit, float] = {}
    for node in kept:
        layer, unit, position = (int(part) for part in node["node_id"].split("_"))
        scores[Unit(f"mlp_act.{layer}", position, unit)] = float(node.get("score") or 0.0)
    sites = tuple(f"mlp_act.{layer}" for layer in range(shape.n_layers))
    space = Space(sites, len(told["prompt_tokens"]), "unit", shape.d_mlp)
    order = sorted(scores, key=lambda unit: -scores[unit])
    found = origin or Origin(
        model=str(told.get("scan") or ""),
        model_hash=str(info.get("model_hash") or ""),
        metric=str(info.get("metric") or ""),
        method="attribution graph",
        notes={"prompt": str(told.get("prompt") or "")},
    )
    tags = tuple(str(group[0]) for group in supernodes if group)
    return Circuit(space, tuple(order), tuple(scores[unit] for unit in order), found, (), Card(tags=tags))


def _is_neuron(node: Mapping[str, Any]) -> bool:
    return node.get("feature_type") not in ("embedding", "logit", "mlp reconstruction error")
