"""Edges as ACDC (Conmy et al. 2023) lists them, from JSON: [[receiver hook, index, sender hook, index], effect].

ACDC itself keeps them in a pickle, which is refused (pickled.py says how to turn one into JSON). Hooks are TransformerLens's;
an index is [null, null, head] for a head.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from ....protos.errors import InvalidArgument
from ...circuits import Circuit, Edge, Origin, Unit, node_space
from .shape import Shape

__all__ = ["acdc_circuit", "is_acdc"]

_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


def is_acdc(data: Any) -> bool:
    """Whether JSON data looks like such a list."""
    rows = cast("list[Any]", data)
    return isinstance(data, list) and bool(rows) and all(_fits(row) for row in rows)


def acdc_circuit(data: Sequence[Any], shape: Shape, origin: Origin | None = None) -> Circuit:
    """The circuit of a list of edges. Edges within a head (its q, k, v and output) are no edges here; they are left out."""
    edges: dict[tuple[str, str], float] = {}
    for (to, _, source, index), effect in data:
        sender, receiver = _sender(source, index), _receiver(to, shape)
        if sender is None or receiver is None:
            continue
        key = (sender.name, receiver)
        if key not in edges or abs(effect) > abs(edges[key]):
            edges[key] = float(effect)
    if not edges:
        raise InvalidArgument("no edge of this list runs between the input, heads, MLPs and logits")
    found = tuple(Edge(sender, receiver, score) for (sender, receiver), score in edges.items())
    worth: dict[Unit, float] = {}
    for edge in found:
        unit = Unit.parse(edge.sender)
        worth[unit] = worth.get(unit, 0.0) + edge.score
    order = sorted(worth, key=lambda unit: -worth[unit])
    space = node_space(order, {"z": shape.n_heads})
    return Circuit(space, tuple(order), tuple(worth[u] for u in order), origin or Origin(method="ACDC"), found)


def _fits(row: Any) -> bool:
    try:
        (to, _, source, _), effect = row
    except (TypeError, ValueError):
        return False
    return isinstance(to, str) and isinstance(source, str) and isinstance(effect, int | float)


def _sender(name: str, index: Any) -> Unit | None:
    if name in ("hook_embed", "hook_pos_embed", "blocks.0.hook_resid_pre"):
        return Unit("embed")
    layer, kind = _parted(name)
    if kind == "attn.hook_result":
        return Unit(f"z.{layer}", head=int(index[2]))
    return Unit(f"mlp_out.{layer}") if kind == "hook_mlp_out" else None


def _receiver(name: str, shape: Shape) -> str | None:
    layer, kind = _parted(name)
    if kind in ("hook_q_input", "hook_k_input", "hook_v_input"):
        return f"attn_resid.{layer}"
    if kind == "hook_mlp_in":
        return f"mlp_resid.{layer}"
    return f"resid_post.{shape.n_layers - 1}" if kind == "hook_resid_post" else None


def _parted(name: str) -> tuple[int, str]:
    found = _LAYER.fullmatch(name)
    return (int(found[1]), found[2]) if found else (0, name)
