"""Path patching: what one component tells another directly, along the residual stream, with all else held still.

Sources: Wang et al. 2022 (IOI), Goldowsky-Dill et al. 2023. The receiver reads its branch's input as it was, plus the
change of the sender's contribution; what the receiver then makes of it goes on to the logits as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Hook, Input, NamedArray, patch as patch_hook
from ...clients.requests.hooks import Options
from ...clients.requests.prompts import Prompts
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from ...protos.model import MAX_INPUTS, ModelInfo
from ...protos.sites import Site, SitePattern
from .grid import n_heads
from .pairs import Direction, Pair, Side, check_direction, make_pairs, same_length

__all__ = ["End", "PathPatching", "end_name", "path_patching"]

End = str | tuple[str, int]
"""A site, or (a site, a head): "mlp_out.3", ("z.9", 6), "attn_resid.10", ("q.10", 2), "logits"."""
SENDERS = ("embed", "attn_out", "mlp_out", "z")
BRANCHES = ("attn_resid", "mlp_resid")
INSIDE = ("q", "k", "v")
Rows = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class PathPatching:
    """What the metric becomes when each path is patched."""

    per_pair: NamedArray
    """[pair, sender, receiver]; [pair, sender] for receivers taken together."""
    base: NamedArray
    """[pair]: the metric of the prompts that ran, as they are."""
    direction: Direction

    @property
    def effect(self) -> NamedArray:
        """Mean over pairs of patched − unpatched. 0 where the receiver comes before the sender."""
        metric = self.per_pair.mean("pair")
        return NamedArray(metric.values - float(np.mean(self.base.values)), metric.axes)


def path_patching(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    senders: Sequence[End],
    receivers: Sequence[End],
    metric: Metric | Sequence[Metric],
    *,
    positions: Sequence[int] | None = None,
    receiver_positions: Sequence[int] | None = None,
    together: bool = False,
    direction: Direction = "noise",
    progress: bool = True,
    model: str = "",
) -> PathPatching:
    """Patch every path from a sender to a receiver on its own; with `together`, from a sender to all receivers at once.

    Senders: embed, attn_out.L, mlp_out.L, or a head ("z.L", h). Receivers: attn_resid.L, mlp_resid.L (the branch's
    input), "logits" (the last residual stream), or one head's ("q.L", h), ("k.L", h), ("v.L", h). `positions`: where the
    sender's change is sent from; `receiver_positions`: where a receiver takes it (counted as in `where.positions`).
    `direction` "noise": the clean prompt runs and the sender's corrupt value is sent. Raises InvalidArgument for prompts
    that do not pair and for ends that are neither.
    """
    base, other = check_direction(direction)
    pairs = make_pairs(client, clean, corrupt, metric, model=model)
    n_tokens, info = same_length(pairs, "path patching"), client.describe(model)
    where = _absolute(positions, n_tokens, "positions")
    takes = _absolute(receiver_positions, n_tokens, "receiver_positions")
    sent, taken = [_sender(info, end) for end in senders], [_receiver(info, end) for end in receivers]
    if not sent or not taken:
        raise InvalidArgument("path patching needs at least one sender and one receiver")
    change, own = _changes(client, pairs, sent, taken, base, other, where, model)
    plans: list[list[Hook]] = [[]]
    groups = [taken] if together else [[receiver] for receiver in taken]
    values = _received(client, pairs, base, sent, taken, change, own, takes, model)
    for s, sender in enumerate(sent):
        for group in groups:
            later = [receiver for receiver in group if _before(sender, receiver)]
            plans.append([_hook(pair, base, end, values[pair.index, s, end], takes) for end in later for pair in pairs])
    inputs = [item for pair in pairs for item in (pair.input(base), *pair.baselines)]
    targets = [pair.target(base) for pair in pairs]
    sweep = client.sweep(inputs, targets, plans, progress=progress, model=model)
    found = np.stack([np.asarray(sweep.array(pair.name(base)).values) for pair in pairs])
    labels = {"pair": [pair.index for pair in pairs]}
    axes = {**labels, "sender": [end_name(end) for end in senders]}
    if not together:
        axes["receiver"] = [end_name(end) for end in receivers]
    grid = found[:, 1:].reshape([len(labels) for labels in axes.values()])
    return PathPatching(NamedArray(grid, axes), NamedArray(found[:, 0], labels), direction)


def end_name(end: End) -> str:
    """How an end is labelled: "mlp_out.3", "z.9 head 6"."""
    return end if isinstance(end, str) else f"{end[0]} head {end[1]}"


# ---- ends ----


@dataclass(frozen=True, slots=True)
class _End:
    site: Site
    head: int | None


def _parse(info: ModelInfo, end: End, allowed: Sequence[str], what: str) -> _End:
    text, head = (end, None) if isinstance(end, str) else end
    site = Site.parse(text, info.n_layers if SitePattern.parse(text).from_end else None)
    if site.name not in allowed:
        raise InvalidArgument(
            f"{text!r} is no {what}; {what}s are {', '.join(allowed)} (with a layer, where it has one)"
        )
    if site.layer is not None and not 0 <= site.layer < info.n_layers:
        raise InvalidArgument(f"{text!r}: the model has the layers 0 … {info.n_layers - 1}")
    if (site.name in ("z", *INSIDE)) != (head is not None):
        raise InvalidArgument(
            f"{end_name(end)!r}: z, q, k and v need a head, as in ('z.9', 6), and other sites have none"
        )
    if head is not None and not 0 <= head < (count := n_heads(info, site.name, site.layer)):
        raise InvalidArgument(f"{end_name(end)!r}: {site} has the heads 0 … {count - 1}")
    return _End(site, head)


def _sender(info: ModelInfo, end: End) -> _End:
    return _parse(info, end, SENDERS, "sender")


def _receiver(info: ModelInfo, end: End) -> _End:
    if end == "logits":
        return _End(Site("resid_post", info.n_layers - 1), None)
    return _parse(info, end, (*BRANCHES, *INSIDE, "logits"), "receiver")


def _branch(receiver: _End) -> str:
    """The residual stream as the receiver reads it."""
    return f"attn_resid.{receiver.site.layer}" if receiver.site.name in INSIDE else str(receiver.site)


def _before(sender: _End, receiver: _End) -> bool:
    one, other = sender.site.order, Site.parse(_branch(receiver)).order
    return one is not None and other is not None and one < other


def _absolute(positions: Sequence[int] | None, n: int, what: str) -> list[int]:
    if positions is None:
        return list(range(n))
    if not positions or any(not -n <= p < n for p in positions):
        raise InvalidArgument(f"{what} {list(positions)} are not in a prompt of {n} tokens")
    return sorted({p % n for p in positions})


# ---- what is sent, and what arrives ----


def _changes(
    client: Client,
    pairs: Sequence[Pair],
    senders: Sequence[_End],
    receivers: Sequence[_End],
    base: Side,
    other: Side,
    where: Sequence[int],
    model: str,
) -> tuple[dict[tuple[int, int], Rows], dict[tuple[int, str], Rows]]:
    """Change of each sender's contribution, (pair, sender) → [pos, d_model]; own branch inputs, (pair, site) → the same."""
    whole = [str(sender.site) for sender in senders if sender.head is None]
    heads = [sender for sender in senders if sender.head is not None]
    out = [f"attn_out.{sender.site.layer}" for sender in heads]
    capture = list(dict.fromkeys([*whole, *out, *(_branch(receiver) for receiver in receivers)]))
    run = client.run([pair.input(side) for pair in pairs for side in (base, other)], capture=capture, model=model)
    patched = _patched_heads(client, pairs, heads, base, other, model)
    change: dict[tuple[int, int], Rows] = {}
    own: dict[tuple[int, str], Rows] = {}
    for pair in pairs:
        mine, there = (run.inputs[pair.name(side)].captures for side in (base, other))
        for receiver in receivers:
            own[pair.index, _branch(receiver)] = _wide(mine[_branch(receiver)])
        for s, sender in enumerate(senders):
            if sender.head is None:
                delta = _wide(there[str(sender.site)]) - _wide(mine[str(sender.site)])
            else:
                delta = patched[pair.index, sender] - _wide(mine[f"attn_out.{sender.site.layer}"])
            kept = np.zeros_like(delta)
            kept[list(where)] = delta[list(where)]
            change[pair.index, s] = kept
    return change, own


def _patched_heads(
    client: Client, pairs: Sequence[Pair], heads: Sequence[_End], base: Side, other: Side, model: str
) -> dict[tuple[int, _End], Rows]:
    """attn_out of the layer once one head's z comes from the other side: exact with any norm after the projection."""
    found: dict[tuple[int, _End], Rows] = {}
    for pair in pairs:
        for start in range(0, len(heads), MAX_INPUTS - 1):
            some = {f"{h.site} {h.head}": h for h in dict.fromkeys(heads[start : start + MAX_INPUTS - 1])}
            inputs = [pair.input(other, source_only=True)]
            inputs += [Input(token_ids=pair.ids(base), name=name) for name in some]
            hooks = [
                patch_hook(str(h.site), from_input=pair.name(other), heads=(h.head or 0,), inputs=name)
                for name, h in some.items()
            ]
            layers = sorted({h.site.layer or 0 for h in some.values()})
            run = client.run(inputs, hooks=hooks, capture=[f"attn_out.{layer}" for layer in layers], model=model)
            for name, h in some.items():
                found[pair.index, h] = _wide(run.inputs[name].captures[f"attn_out.{h.site.layer}"])
    return found


def _received(
    client: Client,
    pairs: Sequence[Pair],
    base: Side,
    senders: Sequence[_End],
    receivers: Sequence[_End],
    change: dict[tuple[int, int], Rows],
    own: dict[tuple[int, str], Rows],
    takes: Sequence[int],
    model: str,
) -> dict[tuple[int, int, _End], Rows]:
    """(pair, sender, receiver) → the rows that the receiver has in place of its own, at the positions that take."""
    found: dict[tuple[int, int, _End], Rows] = {}
    inside: list[tuple[Pair, int, _End, Rows]] = []
    for pair in pairs:
        for s, sender in enumerate(senders):
            for receiver in (r for r in receivers if _before(sender, r)):
                rows = own[pair.index, _branch(receiver)] + change[pair.index, s]
                if receiver.site.name in INSIDE:
                    inside.append((pair, s, receiver, rows))
                else:
                    found[pair.index, s, receiver] = rows[list(takes)]
    for start in range(0, len(inside), MAX_INPUTS):
        some = {str(i): item for i, item in enumerate(inside[start : start + MAX_INPUTS])}
        hooks = [patch_hook(_branch(r), value=rows, inputs=name) for name, (_, _, r, rows) in some.items()]
        inputs = [Input(token_ids=pair.ids(base), name=name) for name, (pair, *_) in some.items()]
        capture = list(dict.fromkeys(str(r.site) for _, _, r, _ in some.values()))
        run = client.run(inputs, hooks=hooks, capture=capture, model=model)
        for name, (pair, s, r, _) in some.items():
            heads = np.asarray(run.inputs[name].captures[str(r.site)])
            found[pair.index, s, r] = heads[list(takes)][:, [r.head or 0]]
    return found


def _hook(pair: Pair, base: Side, receiver: _End, rows: Rows, takes: Sequence[int]) -> Hook:
    options: Options = {"inputs": pair.name(base), "positions": list(takes)}
    heads = None if receiver.head is None else (receiver.head,)
    return patch_hook(str(receiver.site), value=rows, heads=heads, **options)


def _wide(rows: Rows) -> Rows:
    """As float64 where the model runs in float64, else float32: half precision would round the sum."""
    return np.asarray(rows, dtype=np.float64 if rows.dtype == np.float64 else np.float32)
