"""From a trace to a site table: what equals what, to the bit, says which module is what. Names are not read.

A block's parts are found by the sum that the model itself makes: resid_mid is the tensor that some module reads and that
equals resid_pre + attn_out, and resid_post equals resid_mid + mlp_out; or, where both read the same rows,
resid_pre + attn_out + mlp_out. Equality, not closeness: real models have values so large that a small term hides in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..sites import Dims, Family, Tap
from .trace import AttentionCall, Trace

__all__ = ["Anatomy", "Block", "NotUnderstood", "derive"]

Kind = Literal["sequential", "parallel", "stream"]
"""attention, then MLP; both from the same rows; or only the stream between layers is understood."""
_UNITY = 1.0


class NotUnderstood(Exception):
    """The model is not built as this module knows it; the message says where."""


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
    d_mlp: int = 0


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


def derive(
    trace: Trace, vocab: int, *, backend: str, model_type: str, numbers: Sequence[float], activations: Mapping[str, Any]
) -> Anatomy:
    """The table. `numbers`: that may scale a block's output; `activations`: by name. Raises NotUnderstood."""
    path, n_layers = _layers(trace)
    body, _, layers = path.rpartition(".")
    last = trace.get(f"{path}.{n_layers - 1}", "output")
    norm = _final_norm(trace, body, path, last)
    blocks = tuple(_block(trace, f"{path}.{i}", numbers, activations) for i in range(n_layers))
    kinds = {block.kind for block in blocks}
    if len(kinds) > 1:
        blocks = tuple(_stream_only(block) for block in blocks)
    taps, where, refused = _common(blocks)
    calls = [call for call in trace.calls if call.path.startswith(f"{path}.")]
    attention, fault = _one_attention(blocks, calls)
    family = Family(
        name=model_type,
        model_types=(model_type,),
        taps=taps,
        body={backend: body},
        layers=layers,
        norm=norm,
        attention=attention,
        heads=not fault,
        where=where,
    )
    if fault:
        refused |= dict.fromkeys(("q", "k", "v", "z", "attn_scores", "attn_probs"), fault)
        taps.pop("z", None)
    activations_seen = {block.activation for block in blocks}
    activation = activations_seen.pop() if len(activations_seen) == 1 else ""
    return Anatomy(family, _dims(calls, blocks, n_layers, last, vocab), blocks, refused, activation, not fault)


def _one_attention(blocks: Sequence[Block], calls: Sequence[AttentionCall]) -> tuple[str, str]:
    """The attention module below each layer; and why what is inside it is not offered, or empty."""
    paths = {block.attention for block in blocks}
    if len(paths) > 1 or "" in paths or len(calls) != len(blocks):
        return "", "not every layer calls the attention function once, at one module"
    shapes = {(call.q.shape[1:2], call.k.shape[1:2], call.q.shape[3], call.v.shape[3]) for call in calls}
    if len(shapes) > 1 or calls[0].q.shape[3] != calls[0].v.shape[3]:
        return "", "heads differ between layers, or their values are narrower than their keys"
    return paths.pop(), ""


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
    found = _sequential(trace, base, x, y, numbers) or _parallel(trace, base, x, y, numbers)
    calls = [call for call in trace.calls if call.path.startswith(f"{base}.")]
    if len(calls) == 1:
        _attention(trace, block, calls[0], x)
    if found is None:
        block.why["attn_out"] = block.why["mlp_out"] = block.why["resid_mid"] = (
            "resid_post is not the sum of resid_pre and what two modules give"
        )
        return block
    middle, first, second, block.scales = found
    block.kind = "parallel" if middle is None else "sequential"
    if calls and not _made_by(trace, base, first, calls[0].path):
        if middle is not None or not _made_by(trace, base, second, calls[0].path):
            return _stream_only(block, "neither of the two contributions is attention's")
        return _stream_only(block, "the MLP is computed before attention, and sites have their order")
    stream = x if middle is None else trace.get(middle, "input")
    if middle is not None:
        reader = next((path for path in trace.places(stream, "input") if path in trace.norms), middle)
        block.taps["resid_mid"] = Tap(reader[len(base) + 1 :], "input", in_place=True)
    else:
        block.why["resid_mid"] = "attention and MLP read the same rows, so there is no stream between them"
    for name, path, scale in (("attn_out", first, block.scales[0]), ("mlp_out", second, block.scales[1])):
        if scale == _UNITY:
            block.taps[name] = _output(trace, base, path)
        else:
            block.why[name] = f"the stream takes {scale:g} times what a module gives, so no tensor is the contribution"
    _mlp(trace, block, second, stream, activations)
    _not_shared(block)
    return block


def _stream_only(block: Block, why: str = "the layers are not built alike") -> Block:
    kept = {name: tap for name, tap in block.taps.items() if name in ("resid_pre", "resid_post")}
    return replace(
        block, kind="stream", taps=kept, why={**block.why, **dict.fromkeys(set(block.taps) - set(kept), why)}
    )


Found = tuple[str | None, str, str, tuple[float, float]]
"""The reader of resid_mid, attention's and the MLP's output, and by how much the stream takes them."""


def _sequential(trace: Trace, base: str, x: Any, y: Any, numbers: Sequence[float]) -> Found | None:
    outs, seen = trace.below(base, "output", x), list[Any]()
    for reader, r in trace.below(base, "input", x):
        if trace.equal(r, x) or trace.equal(r, y) or any(trace.equal(r, other) for other in seen):
            continue
        seen.append(r)
        at = trace.order[reader, "input"]
        before = [item for item in outs if trace.order[item[0], "output"] < at]
        after = [item for item in outs if trace.order[item[0], "output"] > at]
        first = _last(_summed(trace, x, r, before, numbers))
        second = _last(_summed(trace, r, y, after, numbers)) if first is not None else None
        if first is not None and second is not None:
            return reader, first[0], second[0], (first[1], second[1])
    return None


def _parallel(trace: Trace, base: str, x: Any, y: Any, numbers: Sequence[float]) -> Found | None:
    outs = [(path, value) for path, value in trace.below(base, "output", x) if _is_something(value)]
    found: Found | None = None
    for i, (first, a) in enumerate(outs):
        for second, m in outs[i + 1 :]:
            if trace.equal(a, m):
                continue
            for c in (_UNITY, *numbers):
                p, q = (a, m) if c == _UNITY else (a * c, m * c)
                if any(trace.equal(total, y) for total in (x + p + q, x + q + p, x + (p + q))):
                    found = None, first, second, (c, c)  # the outermost modules: those seen last
                    break
    return found


def _summed(
    trace: Trace, x: Any, total: Any, outs: Sequence[tuple[str, Any]], numbers: Sequence[float]
) -> Iterator[tuple[str, float]]:
    """(path, c) of the modules of which c times the output, added to x, is the total."""
    for path, value in outs:
        if not _is_something(value):
            continue
        for c in (_UNITY, *numbers):
            if trace.equal(x + (value if c == _UNITY else value * c), total):
                yield path, c
                break


def _last(found: Iterator[tuple[str, float]]) -> tuple[str, float] | None:
    """The outermost module: its output is seen last."""
    return next(reversed(list(found)), None)


def _is_something(value: Any) -> bool:
    return bool((value != 0).any())


def _made_by(trace: Trace, base: str, path: str, attention: str) -> bool:
    """Whether a contribution is the attention module's: itself, inside it, around it, or a norm behind it."""
    sources = list(trace.places(trace.get(path, "output"), "output"))
    for norm in [one for one in sources if one in trace.norms]:
        sources += trace.places(trace.get(norm, "input"), "output")
    sources = [one for one in sources if one.startswith(f"{base}.")]
    return any(
        one == attention or one.startswith(f"{attention}.") or attention.startswith(f"{one}.") for one in sources
    )


def _output(trace: Trace, base: str, path: str) -> Tap:
    """Where a contribution is given: at a plain linear module if one gives the same tensor, so that low_rank applies."""
    same = [one for one in trace.places(trace.get(path, "output"), "output") if one.startswith(f"{base}.")]
    plain = [one for one in same if one in trace.linear]
    chosen = plain[-1] if plain else path
    return Tap(chosen[len(base) + 1 :], "output", linear=bool(plain))


def _read(trace: Trace, block: Block, names: tuple[str, str], path: str, stream: Any) -> None:
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


def _not_shared(block: Block) -> None:
    """One norm for both parts: an edit there would reach both, so each part's own input is the site."""
    own = (block.taps.get("attn_in"), block.taps.get("mlp_in"))
    if own[0] is None or own[0] != own[1]:
        return
    for name in ("attn_resid", "mlp_resid"):
        block.taps.pop(name, None)
        block.why[name] = "attention and MLP read the stream through one norm, so neither has rows of its own there"
    block.taps["attn_in"] = Tap(block.attention, "input")
    block.taps["mlp_in"] = Tap(block.mlp, "input")


def _attention(trace: Trace, block: Block, call: AttentionCall, x: Any) -> None:
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
    _read(trace, block, ("attn_resid", "attn_in"), call.path, x)


def _mlp(trace: Trace, block: Block, path: str, stream: Any, activations: Mapping[str, Any]) -> None:
    made = trace.get(path, "output")
    given = [path, *trace.places(made, "output")]
    behind = trace.get(path, "input") if path in trace.norms else None
    if behind is not None:  # a norm behind the MLP
        given += list(trace.places(behind, "output"))
    whole = [one for one in given if one.startswith(f"{block.base}.") and one not in trace.leaves | trace.norms]
    if not whole:
        block.why["mlp_in"] = block.why["mlp_act"] = "no one module is the MLP"
        return
    mlp = min(whole, key=len)
    _read(trace, block, ("mlp_resid", "mlp_in"), mlp, stream)
    block.mlp = mlp[len(block.base) + 1 :]
    target = trace.get(mlp, "output")
    down = [p for p in trace.linear if p.startswith(f"{mlp}.") and trace.equal(trace.get(p, "output"), target)]
    if not down or trace.get(down[0], "input") is None:
        block.why["mlp_act"] = "the MLP's output is not one linear module's: a mixture of experts, or another make"
        return
    acted = trace.get(down[0], "input")
    if acted.ndim != 3:
        block.why["mlp_act"] = "the MLP's rows are not the tokens'"
        return
    _branches(trace, block, mlp, down[0], acted, activations)


def _branches(
    trace: Trace, block: Block, mlp: str, down: str, acted: Any, activations: Mapping[str, Callable[[Any], Any]]
) -> None:
    """gate and up: mlp_act = act(gate) · up, or act(gate) where there is one branch."""
    cut = len(block.base) + 1
    block.taps["mlp_act"], block.d_mlp = Tap(down[cut:], "input"), acted.shape[-1]
    wide = [
        (path, value)
        for (path, side), value in trace.values.items()
        if side == "output" and path.startswith(f"{mlp}.") and path in trace.leaves and path != down
    ]
    for name, act in activations.items():
        for path, value in wide:
            if value.shape == acted.shape:
                gate = act(value)
                if trace.close(gate, acted):
                    block.taps["mlp_gate"], block.activation = (
                        Tap(path[cut:], "output", linear=path in trace.linear),
                        name,
                    )
                    return
                up = next(
                    (p for p, v in wide if p != path and v.shape == acted.shape and trace.close(gate * v, acted)), None
                )
                if up is not None:
                    block.taps["mlp_gate"] = Tap(path[cut:], "output", linear=path in trace.linear)
                    block.taps["mlp_up"] = Tap(up[cut:], "output", linear=up in trace.linear)
                    block.activation = name
                    return
            elif value.shape[:-1] == acted.shape[:-1] and value.shape[-1] == 2 * acted.shape[-1]:
                halves = value[..., : acted.shape[-1]], value[..., acted.shape[-1] :]
                for first, second in ((0, 1), (1, 0)):
                    if trace.close(act(halves[first]) * halves[second], acted):
                        block.taps["mlp_gate"] = Tap(path[cut:], "output", part=(first, 2))
                        block.taps["mlp_up"] = Tap(path[cut:], "output", part=(second, 2))
                        block.activation = name
                        return
    block.why["mlp_gate"] = "mlp_act is no known function of what modules give"


# ---- all layers ----


def _common(blocks: Sequence[Block]) -> tuple[dict[str, Tap], dict[str, tuple[int, ...]], dict[str, str]]:
    """The taps, the layers of those that not every layer has, and why others are not offered."""
    taps, where, refused = dict[str, Tap](), dict[str, tuple[int, ...]](), dict[str, str]()
    for name in dict.fromkeys(name for block in blocks for name in (*block.taps, *block.why)):
        at = [i for i, block in enumerate(blocks) if name in block.taps]
        found = {block.taps[name] for block in blocks if name in block.taps}
        if len(found) == 1:
            taps[name] = found.pop()
            if len(at) < len(blocks):
                where[name] = tuple(at)
        else:
            reasons = dict.fromkeys(block.why[name] for block in blocks if name in block.why)
            refused[name] = "; ".join(reasons) or "it is at another module in each kind of layer"
    return taps, where, refused


def _dims(calls: Sequence[AttentionCall], blocks: Sequence[Block], n_layers: int, last: Any, vocab: int) -> Dims:
    first = calls[0] if calls else None
    return Dims(
        n_layers=n_layers,
        d_model=last.shape[-1],
        n_heads=first.q.shape[1] if first else 0,
        n_kv_heads=first.k.shape[1] if first else 0,
        d_head=first.q.shape[3] if first else 0,
        d_mlp=max(block.d_mlp for block in blocks),
        vocab=vocab,
    )
