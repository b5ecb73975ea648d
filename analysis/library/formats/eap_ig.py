"""Circuits as EAP-IG and MIB's circuit track write them in JSON, both ways.

Source of the schema: `Graph.to_json` and `from_json` of hannamw/EAP-IG: {"cfg", "nodes" {name: {in_graph, score, neurons}}, "edges"
{"a->b<q>": {score, in_graph}}}. Names: input, a3.h2 (a head), m5 (an MLP), logits. There an edge enters one head by its query,
key or value; here it enters the attention of a layer, so that several become one, of the largest |score|.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from ....protos.errors import InvalidArgument
from ...circuits import Circuit, Edge, JoinedSpace, Origin, Space, Unit
from .shape import Shape

__all__ = ["eap_ig_circuit", "eap_ig_json", "is_eap_ig"]

_NODE = re.compile(r"input|logits|m(?P<mlp>\d+)|a(?P<layer>\d+)\.h(?P<head>\d+)")
_EDGE = re.compile(r"(?P<sender>[^<>-]+)->(?P<receiver>[^<>-]+?)(?:<(?P<branch>[qkv])>)?")


def is_eap_ig(data: Any) -> bool:
    """Whether JSON data looks like such a graph."""
    return isinstance(data, dict) and {"cfg", "nodes", "edges"} <= set(cast("dict[str, Any]", data))


def eap_ig_circuit(data: Mapping[str, Any], shape: Shape | None = None, origin: Origin | None = None) -> Circuit:
    """The nodes and edges that are in the graph. `shape`: of the model it shall be used on; the file's own must fit it.

    What the file says and a circuit cannot is told in `origin.notes`. Raises InvalidArgument for a graph with nothing in it.
    """
    cfg = _shape(data)
    if shape is not None and (shape.n_layers, shape.n_heads) != (cfg.n_layers, cfg.n_heads):
        raise InvalidArgument(
            f"the graph is of {cfg.n_layers} layers with {cfg.n_heads} heads, the model has {shape.n_layers} with "
            f"{shape.n_heads}"
        )
    notes: dict[str, str] = {}
    edges = _edges(data["edges"], cfg, notes)
    nodes = _nodes(data["nodes"], cfg, notes)
    outgoing: dict[str, float] = {}
    for edge in edges:
        outgoing[edge.sender] = outgoing.get(edge.sender, 0.0) + edge.score
    scored = {unit: outgoing.get(unit.name, 0.0) if score is None else score for unit, score in nodes.items()}
    for edge in edges:  # a file may list edges alone
        scored.setdefault(Unit.parse(edge.sender), outgoing[edge.sender])
    if not scored:
        raise InvalidArgument("no node and no edge is in this graph; apply a threshold or top-n before it is written")
    order = sorted(scored, key=lambda unit: -scored[unit])
    found = origin or Origin(method="EAP-IG's graph")
    kept = Circuit(_space(cfg), tuple(order), tuple(scored[unit] for unit in order), found, tuple(edges))
    return kept.with_origin(notes={**(found.notes or {}), **notes}) if notes else kept


def eap_ig_json(circuit: Circuit, shape: Shape) -> dict[str, Any]:
    """JSON data that `Graph.from_json` reads: every node and edge of the model, those of the circuit in the graph.

    A circuit without edges gets all between its nodes. Raises InvalidArgument for neurons of the MLP's middle, which that
    graph has no place for (its neurons are coordinates of what a node writes), and for circuits told apart by position.
    """
    scores: dict[str, float] = {}
    for unit, score in zip(circuit.units, circuit.scores, strict=True):
        for name in _names_of(unit, shape):
            scores[name] = score
    inside = {"logits", *scores}
    listed = {(name, edge.receiver): edge.score for edge in circuit.edges for name in _senders(edge, shape)}
    nodes = {name: {"in_graph": name in inside, **_score(scores.get(name))} for name in _all_nodes(shape)}
    nodes["logits"] = {"in_graph": True}
    edges: dict[str, Any] = {}
    for sender, receiver, branch in _all_edges(shape):
        score = listed.get((sender, _receiver(receiver, shape))) if circuit.edges else scores.get(sender)
        kept = sender in inside and receiver in inside and score is not None
        edges[f"{sender}->{receiver}" + (f"<{branch}>" if branch else "")] = {"score": score or 0.0, "in_graph": kept}
    return {
        "cfg": {
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "parallel_attn_mlp": shape.parallel,
            "d_model": shape.d_model,
        },
        "nodes": nodes,
        "edges": edges,
    }


# ---- reading ----


def _shape(data: Mapping[str, Any]) -> Shape:
    try:
        cfg = data["cfg"]
        return Shape(
            int(cfg["n_layers"]), int(cfg["n_heads"]), int(cfg["d_model"]), parallel=bool(cfg["parallel_attn_mlp"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(
            f"an EAP-IG graph's cfg has n_layers, n_heads, d_model and parallel_attn_mlp; this one: {error}"
        ) from error


def _space(cfg: Shape) -> JoinedSpace:
    layers = range(cfg.n_layers)
    heads = Space(tuple(f"z.{layer}" for layer in layers), None, "head", cfg.n_heads)
    return JoinedSpace((Space(("embed",)), heads, Space(tuple(f"mlp_out.{layer}" for layer in layers))))


def _nodes(nodes: Mapping[str, Any], cfg: Shape, notes: dict[str, str]) -> dict[Unit, float | None]:
    found: dict[Unit, float | None] = {}
    neurons = unscored = 0
    for name, told in nodes.items():
        # Files of older versions hold the bare flag.
        entry: Mapping[str, Any] = told if isinstance(told, Mapping) else {"in_graph": told}  # pyright: ignore[reportUnknownVariableType] - JSON
        unit = _unit(name, cfg)
        if unit is None or not entry.get("in_graph"):
            continue
        score = entry.get("score")
        if score is not None and score != score:  # NaN: not scored, and so always kept
            score, unscored = None, unscored + 1
        found[unit] = None if score is None else float(score)
        kept = entry.get("neurons")
        neurons += kept is not None and not all(kept)
    if neurons:
        notes["neurons"] = f"{neurons} nodes held only some coordinates of what they write; here they are whole"
    if unscored:
        notes["unscored"] = f"{unscored} nodes had no score; they have that of their edges"
    return found


def _edges(edges: Mapping[str, Any], cfg: Shape, notes: dict[str, str]) -> list[Edge]:
    found: dict[tuple[str, str], float] = {}
    merged = 0
    for name, told in edges.items():
        parts = _EDGE.fullmatch(name)
        if parts is None:
            raise InvalidArgument(f'{name!r} is no edge of such a graph; they read "a0.h1->m2" and "input->a0.h1<q>"')
        sender, receiver = _unit(parts["sender"], cfg), _receiver(parts["receiver"], cfg)
        if not told["in_graph"] or sender is None:
            continue
        key, score = (sender.name, receiver), float(told["score"])
        merged += key in found
        if key not in found or abs(score) > abs(found[key]):
            found[key] = score
    if merged:
        notes["edges"] = f"{merged} edges into other heads, or by another of q, k and v, are one with a stronger edge"
    return [Edge(sender, receiver, score) for (sender, receiver), score in found.items()]


def _unit(name: str, cfg: Shape) -> Unit | None:
    """The unit of a node; None for the logits, which are in every circuit."""
    parts = _NODE.fullmatch(name)
    layer = 0 if parts is None else int(parts["mlp"] or parts["layer"] or 0)
    if parts is None or layer >= cfg.n_layers or int(parts["head"] or 0) >= cfg.n_heads:
        raise InvalidArgument(
            f"{name!r} is no node of a graph of {cfg.n_layers} layers and {cfg.n_heads} heads: input, a0.h1, m0, logits"
        )
    if name == "logits":
        return None
    if name == "input":
        return Unit("embed")
    return Unit(f"mlp_out.{layer}") if parts["mlp"] else Unit(f"z.{layer}", head=int(parts["head"]))


def _receiver(name: str, cfg: Shape) -> str:
    """Where an edge arrives, as an EdgeSpace names it."""
    unit = _unit(name, cfg)
    if unit is None:
        return f"resid_post.{cfg.n_layers - 1}"
    kind, _, layer = unit.site.partition(".")
    if kind == "embed":
        raise InvalidArgument("nothing enters the input of the graph")
    return f"{'attn' if kind == 'z' else 'mlp'}_resid.{layer}"


# ---- writing ----


def _score(score: float | None) -> dict[str, float]:
    return {} if score is None else {"score": score}


def _names_of(unit: Unit, shape: Shape) -> list[str]:
    kind, _, layer = unit.site.partition(".")
    if unit.position is not None:
        raise InvalidArgument(f"{unit.name}: that graph has no positions; take a circuit that does not tell them apart")
    if kind == "embed":
        return ["input"]
    if kind == "z" and unit.head is not None:
        return [f"a{layer}.h{unit.head}"]
    if kind in ("z", "attn_out"):
        return [f"a{layer}.h{head}" for head in range(shape.n_heads)]
    if kind == "mlp_out" and unit.unit is None:
        return [f"m{layer}"]
    raise InvalidArgument(
        f"{unit.name} has no place in such a graph: its nodes are the input, heads (z) and MLPs (mlp_out); save circuits of "
        "neurons as our JSON, or as CSV"
    )


def _senders(edge: Edge, shape: Shape) -> list[str]:
    return _names_of(Unit.parse(edge.sender), shape)


def _all_nodes(shape: Shape) -> Iterator[str]:
    yield "input"
    for layer in range(shape.n_layers):
        yield from (f"a{layer}.h{head}" for head in range(shape.n_heads))
        yield f"m{layer}"


def _all_edges(shape: Shape) -> Iterator[tuple[str, str, str]]:
    """(sender, receiver, q, k, v or nothing) of the whole model, receivers in forward order."""
    before = ["input"]
    for layer in range(shape.n_layers):
        heads = [f"a{layer}.h{head}" for head in range(shape.n_heads)]
        yield from ((sender, head, branch) for sender in before for head in heads for branch in "qkv")
        reach = before if shape.parallel else [*before, *heads]
        yield from ((sender, f"m{layer}", "") for sender in reach)
        before = [*before, *heads, f"m{layer}"]
    yield from ((sender, "logits", "") for sender in before)
