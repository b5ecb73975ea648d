"""A layer's attention: the module that calls ours, and what is read around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sites import Tap
from .block import Block, read_by
from .trace import AttentionCall, Trace

__all__ = ["batching_fault", "find_attention", "made_by"]


def find_attention(trace: Trace, block: Block, call: AttentionCall, x: Any) -> None:
    """The sites of a layer's one call; none inside attention where keys and values are not of the same heads."""
    block.attention, block.window = call.path[len(block.base) + 1 :], call.window
    read_by(trace, block, ("attn_resid", "attn_in"), call.path, x)
    if call.k.shape[1] != call.v.shape[1]:
        return
    block.call = call
    flat = call.out.reshape(*call.out.shape[:2], -1)
    reading = [
        path
        for path, value in ((p, v) for (p, side), v in trace.values.items() if side == "input")
        if path.startswith(f"{call.path}.") and path in trace.linear and trace.equal(value, flat)
    ]
    # Where it is gated or normed before the output projection reads it, it is what the function gives.
    block.taps["z"] = Tap(reading[0][len(block.base) + 1 :], "input") if reading else Tap(block.attention, "attention")


def made_by(trace: Trace, base: str, path: str, attention: str) -> bool:
    """Whether a contribution is the attention module's: itself, inside it, around it, or a norm behind it."""
    sources = list(trace.places(trace.get(path, "output"), "output"))
    for norm in [one for one in sources if one in trace.norms]:
        sources += trace.places(trace.get(norm, "input"), "output")
    sources = [one for one in sources if one.startswith(f"{base}.")]
    return any(
        one == attention or one.startswith(f"{attention}.") or attention.startswith(f"{one}.") for one in sources
    )


def batching_fault(blocks: Sequence[Block]) -> str:
    """Why the library's own batched generation cannot hold the keys and values, or empty: it has one size for all."""
    if any(block.call is None for block in blocks):
        return "not every layer calls the attention function once"
    calls = [block.call for block in blocks if block.call is not None]
    shapes = {(call.q.shape[1], call.k.shape[1], call.q.shape[3], call.v.shape[3]) for call in calls}
    if len(shapes) > 1:
        return "heads differ between layers"
    return "" if calls[0].q.shape[3] == calls[0].v.shape[3] else "values are narrower than keys"
