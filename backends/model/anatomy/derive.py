"""From a trace to a site table: what equals what, to the bit, says which module is what. Names are not read.

A block's parts are found by the sum that the model itself makes: resid_mid is the tensor that some module reads and that
equals resid_pre + attn_out, and resid_post equals resid_mid + mlp_out; or, where both read the same rows,
resid_pre + attn_out + mlp_out. Equality, not closeness: real models have values so large that a small term hides in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..sites import ATTENTION_TAPS, Dims, Family, Tap, Term
from .attention import batching_fault, find_attention, made_by
from .block import Block, flattened, not_shared, read_by, stream_only
from .layers import sizes, table
from .mixture import find_mixture
from .mlp import find_mlp
from .sums import UNITY, Joined, begun, joined, parallel, sequential, single, unfinished
from .trace import AttentionCall, Trace

__all__ = ["Anatomy", "Block", "NotUnderstood", "derive"]

_PARTS = ("attn_out", "resid_mid", "mlp_out")


class NotUnderstood(Exception):
    """The model is not built as this module knows it; the message says where."""


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """What a model offers, and what it does not."""

    family: Family
    dims: Dims
    blocks: tuple[Block, ...]
    refused: dict[str, str]
    """Site → why it is not offered."""
    activation: str
    attention: bool
    """Whether every layer calls our attention once."""
    batching: str = ""
    """Why the library's own batched generation is not to be used, or empty."""


def derive(
    trace: Trace, vocab: int, *, backend: str, model_type: str, numbers: Sequence[float], activations: Mapping[str, Any]
) -> Anatomy:
    """The table. `numbers`: that may scale a block's output; `activations`: by name. Raises NotUnderstood."""
    path, n_layers = _layers(trace)
    body, _, layers = path.rpartition(".")
    last = trace.get(f"{path}.{n_layers - 1}", "output")
    norm = _final_norm(trace, body, path, last)
    blocks = tuple(_block(trace, f"{path}.{i}", numbers, activations) for i in range(n_layers))
    for block in blocks:
        flattened(trace, block)
    dims = sizes(blocks, last, vocab)
    found = table(blocks, dims)
    calling = [block.attention for block in blocks if block.call is not None]
    family = Family(
        name=model_type,
        taps=found.taps,
        body={backend: body},
        layers=layers,
        norm=norm,
        attention=max(calling, key=calling.count, default=""),
        heads=bool(calling),
        where=found.where,
        own=found.own,
    )
    if not calling:
        found.refused |= dict.fromkeys((*ATTENTION_TAPS, "z"), "no layer calls the attention function once")
    activations_seen = {block.activation for block in blocks}
    activation = activations_seen.pop() if len(activations_seen) == 1 else ""
    everywhere = len(calling) == len(blocks)
    return Anatomy(family, dims, blocks, found.refused, activation, everywhere, batching_fault(blocks))


def _layers(trace: Trace) -> tuple[str, int]:
    """The list whose modules hand one tensor on, bit for bit: the longest there is."""
    found = ("", 0)
    for path, n in trace.lists.items():
        handed = [(trace.get(f"{path}.{i}", "input"), trace.get(f"{path}.{i}", "output")) for i in range(n)]
        if any(a is None or b is None or a.shape != b.shape or a.ndim != 3 for a, b in handed):
            continue
        if any(tuple(a.shape[:2]) != trace.layout for a, _ in handed):
            continue
        joined = all(trace.equal(handed[i][1], handed[i + 1][0]) for i in range(n - 1))
        if joined and n > found[1]:
            found = (path, n)
    if not found[1] or "." not in found[0]:
        raise NotUnderstood("no list of modules hands one tensor [batch, row, d_model] on from each to the next")
    return found


def _final_norm(trace: Trace, body: str, layers: str, last: Any) -> str:
    """The module behind the last layer that reads its output and gives the head's rows, below the body."""
    for path in trace.places(last, "input"):
        outside = path.startswith(f"{body}.") and not path.startswith(f"{layers}.")
        if outside and path in trace.leaves | trace.norms and trace.equal(trace.get(path, "output"), trace.rows):
            return path[len(body) + 1 :]
    raise NotUnderstood("no norm reads the last layer's output and gives what the head reads")


# ---- one layer ----


def _block(trace: Trace, base: str, numbers: Sequence[float], activations: Mapping[str, Any]) -> Block:
    x, y = trace.get(base, "input"), trace.get(base, "output")
    block = Block(base, "stream", {"resid_pre": Tap("", "input"), "resid_post": Tap("", "output")})
    found = sequential(trace, base, x, y, numbers)
    alone = None if found is not None else single(trace, base, x, y, numbers)
    if found is None and alone is None:
        found = parallel(trace, base, x, y, numbers)
    calls = [call for call in trace.calls if call.path.startswith(f"{base}.")]
    if len(calls) == 1:
        find_attention(trace, block, calls[0], x)
    if found is None:
        more = unfinished(trace, base, x, y, numbers) if alone is None else None
        if more is not None and (not calls or made_by(trace, base, more[1][0], calls[0].path)):
            return _unfinished(trace, block, more, calls, numbers, activations)
        start = begun(trace, base, x, y, numbers) if alone is None else None
        if start is not None and calls and _one_is_attention(trace, base, start[1], calls[0].path):
            return _begun(trace, block, start, activations)
        return _with_one_part(trace, block, calls, alone, activations)
    middle, first, second, block.scales = found
    block.kind = "parallel" if middle is None else "sequential"
    if calls and not made_by(trace, base, first, calls[0].path):
        if middle is not None or not made_by(trace, base, second, calls[0].path):
            return stream_only(block, "neither of the two contributions is attention's")
        return stream_only(block, "the MLP is computed before attention, and sites have their order")
    if any(call.path in (first, second) for call in trace.experts):
        return stream_only(
            block, "no module gives all that a mixture adds"
        )  # its experts' part alone is no contribution
    stream = x if middle is None else trace.get(middle, "input")
    if middle is not None:
        block.taps["resid_mid"] = _middle(trace, base, middle)
    else:
        block.why["resid_mid"] = "attention and MLP read the same rows, so there is no stream between them"
    for name, path, scale in (("attn_out", first, block.scales[0]), ("mlp_out", second, block.scales[1])):
        block.taps[name] = _output(trace, base, path, scale)
    if not calls:
        read_by(trace, block, ("attn_resid", "attn_in"), _whole(trace, base, first), x)
    find_mlp(trace, block, second, stream, activations)
    not_shared(block)
    find_mixture(trace, block)
    return block


def _middle(trace: Trace, base: str, reader: str) -> Tap:
    stream = trace.get(reader, "input")
    chosen = next((path for path in trace.places(stream, "input") if path in trace.norms), reader)
    return Tap(chosen[len(base) + 1 :], "input", in_place=True)


def _unfinished(
    trace: Trace,
    block: Block,
    found: tuple[str, tuple[str, float], str],
    calls: Sequence[AttentionCall],
    numbers: Sequence[float],
    activations: Mapping[str, Any],
) -> Block:
    """A layer whose first part is understood, and whose output is not resid_mid and one module's output."""
    base, x = block.base, trace.get(block.base, "input")
    reader, (first, scale), second = found
    block.kind, block.scales = "sequential", (scale, UNITY)
    block.taps["resid_mid"] = middle = _middle(trace, base, reader)
    block.taps["attn_out"] = _output(trace, base, first, scale)
    stream, y = trace.get(reader, "input"), trace.get(base, "output")
    at = trace.order[reader, "input"]
    after = [one for one in trace.below(base, "output", x) if trace.order[one[0], "output"] > at]
    both = None if second else joined(trace, stream, y, after, numbers)
    if both is not None:
        block.taps["mlp_out"] = Tap("", "output", term=_term(base, middle, both))
    else:
        block.why["mlp_out"] = (
            "resid_post is more than resid_mid and what the MLP adds: a third term, or a factor of the layer's, follows"
            if second
            else "no module, and no sum of two, gives all that the layer adds to resid_mid"
        )
    if not calls:
        read_by(trace, block, ("attn_resid", "attn_in"), _whole(trace, base, first), x)
    if second:
        find_mlp(trace, block, second, trace.get(reader, "input"), activations)
    elif f"{base}.{middle.path}" in trace.norms:
        block.taps["mlp_resid"], block.taps["mlp_in"] = Tap(middle.path, "input"), Tap(middle.path, "output")
        block.why["mlp_act"] = "no one module is the MLP"
    find_mixture(trace, block)
    return block


def _term(base: str, stream: Tap, found: Joined) -> Term:
    scale, parts = found
    return Term(stream, tuple((path[len(base) + 1 :], c) for path, c in parts), scale)


def _one_is_attention(trace: Trace, base: str, found: Joined, attention: str) -> bool:
    return sum(made_by(trace, base, path, attention) for path, _ in found[1]) == 1


def _begun(
    trace: Trace,
    block: Block,
    found: tuple[str, Joined, tuple[str, float]],
    activations: Mapping[str, Any],
) -> Block:
    """A layer where attention and another mixer, side by side, make resid_mid; attn_out is the sum of the two."""
    base, (reader, first, (second, scale)) = block.base, found
    block.kind, block.scales = "sequential", (first[0], scale)
    block.taps["resid_mid"] = middle = _middle(trace, base, reader)
    block.taps["attn_out"] = Tap(middle.path, "input", term=_term(base, block.taps["resid_pre"], first))
    block.taps["mlp_out"] = _output(trace, base, second, scale)
    find_mlp(trace, block, second, trace.get(reader, "input"), activations)
    find_mixture(trace, block)
    return block


def _with_one_part(
    trace: Trace,
    block: Block,
    calls: Sequence[AttentionCall],
    found: tuple[str, float] | None,
    activations: Mapping[str, Any],
) -> Block:
    """A layer that adds one module's output: attention's, an MLP's, or another mixer's, which stands where attention does."""
    x = trace.get(block.base, "input")
    if found is None or (calls and not made_by(trace, block.base, found[0], calls[0].path)):
        block.why |= dict.fromkeys(_PARTS, "resid_post is not the sum of resid_pre and what two modules give, or one")
        return block
    path, scale = found
    block.kind, block.scales = "single", (scale, scale)
    block.why["resid_mid"] = "the layer has one part, so there is no stream between two"
    before = dict(block.taps)
    if not calls:
        find_mlp(trace, block, path, x, activations)
        find_mixture(trace, block)
    if "mlp_gate" in block.taps or block.n_experts:
        block.taps["mlp_out"] = _output(trace, block.base, path, scale)
        block.why["attn_out"] = "the layer has an MLP alone"
        return block
    block.taps, block.d_mlp, block.mlp = before, 0, ""
    block.taps["attn_out"] = _output(trace, block.base, path, scale)
    block.why["mlp_out"] = "the layer has no MLP"
    if not calls:
        read_by(trace, block, ("attn_resid", "attn_in"), _whole(trace, block.base, path), x)
    return block


def _whole(trace: Trace, base: str, path: str) -> str:
    """The outermost module below the layer that gives what one inside it gives; of a norm, what stands before it."""
    value = trace.get(path, "input" if path in trace.norms else "output")
    same = [one for one in trace.places(value, "output") if one.startswith(f"{base}.")]
    return min(same, key=len, default=path)


def _output(trace: Trace, base: str, path: str, scale: float) -> Tap:
    """Where a contribution is given: at a plain linear module if one gives the same tensor, so that low_rank applies."""
    same = [one for one in trace.places(trace.get(path, "output"), "output") if one.startswith(f"{base}.")]
    plain = [one for one in same if one in trace.linear]
    chosen = plain[-1] if plain else path
    return Tap(chosen[len(base) + 1 :], "output", linear=bool(plain) and scale == UNITY, scale=scale)
