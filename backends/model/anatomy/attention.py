"""A layer's attention: the module that calls ours, and what is read around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sites import Tap
from .block import Block, read_by
from .trace import AttentionCall, Trace

__all__ = ["find_attention", "made_by", "one_attention"]


def find_attention(trace: Trace, block: Block, call: AttentionCall, x: Any) -> None:
    block.attention, block.window = call.path[len(block.base) + 1 :], call.window
    flat = call.out.reshape(*call.out.shape[:2], -1)
    reading = [
        path
        for path, value in ((p, v) for (p, side), v in trace.values.items() if side == "input")
        if path.startswith(f"{call.path}.") and path in trace.linear and trace.equal(value, flat)
    ]
    if reading:
        block.taps["z"] = Tap(reading[0][len(block.base) + 1 :], "input")
    else:
        block.why["z"] = "what attention gives is gated or normed before the output projection reads it"
    read_by(trace, block, ("attn_resid", "attn_in"), call.path, x)


def made_by(trace: Trace, base: str, path: str, attention: str) -> bool:
    """Whether a contribution is the attention module's: itself, inside it, around it, or a norm behind it."""
    sources = list(trace.places(trace.get(path, "output"), "output"))
    for norm in [one for one in sources if one in trace.norms]:
        sources += trace.places(trace.get(norm, "input"), "output")
    sources = [one for one in sources if one.startswith(f"{base}.")]
    return any(
        one == attention or one.startswith(f"{attention}.") or attention.startswith(f"{one}.") for one in sources
    )


def one_attention(blocks: Sequence[Block], calls: Sequence[AttentionCall]) -> tuple[str, str]:
    """The attention module below each layer; and why what is inside it is not offered, or empty."""
    paths = {block.attention for block in blocks}
    if len(paths) > 1 or "" in paths or len(calls) != len(blocks):
        return "", "not every layer calls the attention function once, at one module"
    shapes = {(call.q.shape[1:2], call.k.shape[1:2], call.q.shape[3], call.v.shape[3]) for call in calls}
    if len(shapes) > 1 or calls[0].q.shape[3] != calls[0].v.shape[3]:
        return "", "heads differ between layers, or their values are narrower than their keys"
    return paths.pop(), ""
