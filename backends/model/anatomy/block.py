"""One layer as its sums show it: its kind, and where its sites are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..sites import Tap
from .trace import AttentionCall, Trace

__all__ = ["Block", "Kind", "flattened", "not_shared", "read_by", "stream_only"]

Kind = Literal["sequential", "parallel", "single", "stream"]
"""attention, then MLP; both from the same rows; one of the two alone; or only the stream between layers is understood."""


@dataclass(slots=True, eq=False)
class Block:
    """One layer, as its sums show it."""

    base: str
    kind: Kind
    taps: dict[str, Tap]
    why: dict[str, str] = field(default_factory=dict[str, str])
    """Site → why it is not among the taps."""
    scales: tuple[float, float] = (1.0, 1.0)
    """By which the stream takes attention's and the MLP's output."""
    attention: str = ""
    """The attention module, below the layer; empty where none of ours was called."""
    activation: str = ""
    """What makes mlp_act of mlp_gate, where we know it."""
    mlp: str = ""
    """The MLP module, below the layer; empty where no one module is it."""
    window: int | None = None
    call: AttentionCall | None = None
    """Of our attention function, where the layer makes one."""
    d_mlp: int = 0
    n_experts: int = 0


def flattened(trace: Trace, block: Block) -> None:
    """Say of each tap whether its tensor has its rows one behind the other."""
    for name, tap in block.taps.items():
        path = f"{block.base}.{tap.path}" if tap.path else block.base
        if (path, tap.side) in trace.flat:
            block.taps[name] = replace(tap, flat=True)


def stream_only(block: Block, why: str = "the layers are not built alike") -> Block:
    kept = {name: tap for name, tap in block.taps.items() if name in ("resid_pre", "resid_post")}
    return replace(
        block, kind="stream", taps=kept, why={**block.why, **dict.fromkeys(set(block.taps) - set(kept), why)}
    )


def read_by(trace: Trace, block: Block, names: tuple[str, str], path: str, stream: Any) -> None:
    """What a part of the block reads: the stream through a norm, or as it is. `names`: of the stream's rows, and the norm's."""
    value, cut = trace.get(path, "input"), len(block.base) + 1
    if value is None or value.shape != stream.shape:
        return
    inside = [one for one in trace.places(value, "output") if one.startswith(f"{block.base}.") and one in trace.norms]
    norms = [one for one in inside if trace.equal(trace.get(one, "input"), stream)]
    if norms:
        block.taps[names[0]] = Tap(norms[0][cut:], "input")
        block.taps[names[1]] = Tap(norms[0][cut:], "output")
    elif trace.equal(value, stream):
        block.taps[names[0]] = block.taps[names[1]] = Tap(path[cut:], "input")
    else:
        block.taps[names[1]] = Tap(path[cut:], "input")
        block.why[names[0]] = "it reads neither the stream nor a norm of it"


def not_shared(block: Block) -> None:
    """One norm for both parts: an edit there would reach both, so each part's own input is the site."""
    own = (block.taps.get("attn_in"), block.taps.get("mlp_in"))
    if own[0] is None or own[0] != own[1]:
        return
    for name in ("attn_resid", "mlp_resid"):
        block.taps.pop(name, None)
        block.why[name] = "attention and MLP read the stream through one norm, so neither has rows of its own there"
    block.taps["attn_in"] = Tap(block.attention, "input")
    block.taps["mlp_in"] = Tap(block.mlp, "input")
