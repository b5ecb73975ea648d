"""A layer's mixture of experts: its router's logits, and the weights that its experts are given."""

from __future__ import annotations

from typing import Any, Literal

from ..sites import Tap
from .block import Block
from .trace import Trace

__all__ = ["find_mixture"]

_Side = Literal["output", "product"]


def find_mixture(trace: Trace, block: Block) -> None:
    """Sites of the one call of experts in a layer, and of what makes a logit an expert before it."""
    calls = [call for call in trace.experts if call.path.startswith(f"{block.base}.")]
    if len(calls) != 1:
        return
    call, cut = calls[0], len(block.base) + 1
    block.n_experts = call.n_experts
    if call.faithful:
        block.taps["expert_weights"] = Tap(call.path[cut:], "weights", flat=True)
    else:
        block.why["expert_weights"] = "the experts' output is not their sum by the weights that they are given"
    inside = [path for path, found in trace.products.items() if path.startswith(f"{block.base}.") and len(found) == 1]
    logits: dict[str, tuple[Any, _Side]] = {path: (trace.products[path][0], "product") for path in inside}
    logits |= {
        path: (trace.get(path, "output"), "output") for path in trace.linear if path.startswith(f"{block.base}.")
    }
    found: list[tuple[int, str, _Side]] = [
        (trace.order[path, "output"], path, side)
        for path, (value, side) in logits.items()
        if value is not None and tuple(value.shape) == (*trace.layout, call.n_experts)
        if (path, "output") in trace.order and trace.order[path, "output"] < call.at
    ]
    if not found:
        block.why["router_logits"] = "no linear module gives a number for each expert"
        return
    _, path, side = max(found)
    flat = side == "product" or (path, "output") in trace.flat
    whole = side == "output" or trace.equal(trace.get(path, "output"), trace.products[path][0])
    block.taps["router_logits"] = Tap(path[cut:], side, flat=flat, router=whole)
