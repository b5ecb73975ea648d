"""Circuits of edges: each receiver reads its kept senders as they are, and every other sender as on the corrupt prompt.

No single forward says this with hooks: what a dropped edge takes out of a receiver's input is a value of the same forward.
(It would take an edit that adds, at a branch's input, another site of the same run times a number.) So nodes are run one
by one, in forward order, each with its input sent along: exact, at one run of the model a node for all circuits together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, patch as patch_hook
from ...clients.requests.prompts import Prompts
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from ...protos.model import MAX_INPUTS
from ..attribution.edges import receiver_sites, sender_sites
from ..attribution.pairs import Pair, make_pairs
from ..attribution.taylor import patterns
from .edge_space import EdgeSpace
from .space import Mask

__all__ = ["EDGE_ABLATIONS", "EdgeAblation", "EdgeModel", "EdgeSpace", "acdc_edges", "edge_circuits"]

EdgeAblation = Literal["patch", "mean"]
EDGE_ABLATIONS: tuple[EdgeAblation, ...] = get_args(EdgeAblation)

Floats = NDArray[np.float64]
Rows = NDArray[Any]
CLEAN, CORRUPT, OTHER = 0, 1, 2


@dataclass(eq=False, slots=True)
class EdgeModel:
    """One metric on some pairs of prompts, under any set of edges. Made by `edge_circuits`."""

    client: Client
    pairs: tuple[Pair, ...]
    space: EdgeSpace
    outputs: Mapping[int, tuple[list[Rows], list[Rows]]]
    """Pair → each sender's rows [pos, d_model] on the clean prompt, and what dropped edges carry in their place."""
    model: str
    ablation: EdgeAblation = "patch"
    _ends: Floats | None = field(default=None)

    def means(self, masks: Sequence[Mask]) -> Floats:
        """[circuit]: the metric on the clean prompts, mean over pairs."""
        return self.values(masks).mean(axis=1)

    @property
    def empty(self) -> float:
        """Without any edge: the logits read corrupt senders alone."""
        return float(self._measured_ends()[0])

    @property
    def full(self) -> float:
        """With every edge: the clean prompt."""
        return float(self._measured_ends()[1])

    def values(self, masks: Sequence[Mask]) -> Floats:
        """[circuit, pair]"""
        some = max(
            MAX_INPUTS // len(self.pairs), 1
        )  # more would not share requests, and each holds every sender's rows
        return np.concatenate([self._values(masks[at : at + some]) for at in range(0, len(masks), some)])

    def _values(self, masks: Sequence[Mask]) -> Floats:
        kept = [self.space.checked(mask) for mask in masks]
        runs = [_Run(pair, mask, *self.outputs[pair.index]) for mask in kept for pair in self.pairs]
        for sender, site in enumerate(self.space.senders):
            if site != "embed":
                self._advance(runs, sender, site)
        last = len(self.space.receivers) - 1
        found = np.zeros((len(kept), len(self.pairs)))
        for column, pair in enumerate(self.pairs):
            own = [run for run in runs if run.pair is pair]
            plans = [[patch_hook(self.space.receivers[last], value=run.input_of(last, self.space))] for run in own]
            inputs = [pair.input("clean"), *pair.baselines]
            sweep = self.client.sweep(inputs, [pair.target("clean")], plans, progress=False, model=self.model)
            found[:, column] = sweep.array(pair.name("clean")).values
        return found

    def _advance(self, runs: Sequence[_Run], sender: int, site: str) -> None:
        """Give every run the sender's own output, from the input that its edges leave it."""
        kind, _, layer = site.partition(".")
        read = f"{kind.removesuffix('_out')}_resid.{layer}"
        receiver = self.space.receivers.index(read)
        waiting = [run for run in runs if not run.known(sender, receiver, self.space, self.ablation == "patch")]
        for start in range(0, len(waiting), MAX_INPUTS):
            some = {str(index): run for index, run in enumerate(waiting[start : start + MAX_INPUTS])}
            hooks = [
                patch_hook(read, value=run.input_of(receiver, self.space), inputs=name) for name, run in some.items()
            ]
            inputs = [Input(token_ids=run.pair.clean, name=name) for name, run in some.items()]
            found = self.client.run(inputs, hooks=hooks, capture=[site], model=self.model)
            for name, run in some.items():
                run.live[sender], run.state[sender] = _wide(found.inputs[name].captures[site]), OTHER

    def _measured_ends(self) -> Floats:
        if self._ends is None:
            none = np.zeros(self.space.shape, dtype=bool)
            self._ends = self.means([none, ~none])
        return self._ends


class _Run:
    """One circuit on one pair, part of the way through the forward pass."""

    def __init__(self, pair: Pair, mask: Mask, clean: list[Rows], corrupt: list[Rows]) -> None:
        self.pair, self.mask, self.clean, self.corrupt = pair, mask, clean, corrupt
        self.live: dict[int, Rows] = {0: clean[0]}
        """Sender → its output in this circuit. The embedding's is the clean prompt's."""
        self.state: dict[int, int] = {0: CLEAN}

    def known(self, sender: int, receiver: int, space: EdgeSpace, patched: bool) -> bool:
        """Fill in an output that needs no run, because the input is wholly the clean or, if `patched`, the corrupt one."""
        before = np.flatnonzero(space.exists[:, receiver]).tolist()
        kept = [bool(self.mask[one, receiver]) for one in before]
        clean = all(keep and self.state[one] == CLEAN for one, keep in zip(before, kept, strict=True))
        corrupt = patched and all(
            not keep or self.state[one] == CORRUPT for one, keep in zip(before, kept, strict=True)
        )
        if clean or corrupt:
            self.live[sender] = (self.clean if clean else self.corrupt)[sender]
            self.state[sender] = CLEAN if clean else CORRUPT
        return clean or corrupt

    def input_of(self, receiver: int, space: EdgeSpace) -> Rows:
        """Σ of kept senders as they are and of the others' corrupt values."""
        before = np.flatnonzero(space.exists[:, receiver]).tolist()
        return sum(
            (self.live[one] if self.mask[one, receiver] else self.corrupt[one] for one in before[1:]),
            start=self.live[0] if self.mask[0, receiver] else self.corrupt[0],
        )


def edge_circuits(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    metric: Metric | Sequence[Metric],
    *,
    ablation: EdgeAblation = "patch",
    model: str = "",
) -> EdgeModel:
    """Edge circuits on the clean prompts. It has what faithfulness.py's curves and MIB figures need.

    `ablation`: what dropped edges carry: the corrupt prompt's values (patch), or each sender's mean over all corrupt prompts,
    by position where they are of one length, else of first tokens and of all others. Raises InvalidArgument for prompts
    that do not pair.
    """
    if ablation not in EDGE_ABLATIONS:
        raise InvalidArgument(f"ablation={ablation!r}; of edges there are {', '.join(EDGE_ABLATIONS)}")
    pairs = make_pairs(client, clean, corrupt, metric, model=model)
    info = client.describe(model)
    space = EdgeSpace(tuple(sender_sites(info)), tuple(receiver_sites(info)))
    names = patterns(space.senders)
    run = client.run([p.input(side) for p in pairs for side in ("clean", "corrupt")], capture=names, model=model)
    outputs: dict[int, tuple[list[Rows], list[Rows]]] = {}
    for pair in pairs:
        clean_rows, corrupt_rows = (
            [_wide(run.inputs[pair.name(side)].captures[site]) for site in space.senders]
            for side in ("clean", "corrupt")
        )
        outputs[pair.index] = (clean_rows, corrupt_rows)
    if ablation == "mean":
        outputs = _averaged(outputs)
    return EdgeModel(client, pairs, space, outputs, model, ablation)


def acdc_edges(model: EdgeModel, *, tau: float = 0.01) -> tuple[Mask, float]:
    """ACDC (Conmy et al. 2023): receivers from the last to the first; each edge into one goes if KL then rises by < τ.

    `model` must be measured by Kl("clean"). Gives (kept [sender, receiver], KL in nats). Costs a run for every node after the
    receiver, an edge: for small models, or few layers; on larger ones take scores from EAP.
    """
    if any(pair.baseline != "clean" for pair in model.pairs):
        raise InvalidArgument('ACDC compares with the whole model; make it with the metric Kl("clean")')
    if not tau > 0:
        raise InvalidArgument(f"tau must be above 0 (nats), got {tau}")
    exists = model.space.exists
    kept = exists.copy()
    current = float(model.means([kept])[0])
    for receiver in reversed(range(exists.shape[1])):
        for sender in reversed(np.flatnonzero(exists[:, receiver]).tolist()):
            trial = kept.copy()
            trial[sender, receiver] = False
            found = float(model.means([trial])[0])
            if found - current < tau:
                kept, current = trial, found
    return kept, current


def _averaged(outputs: Mapping[int, tuple[list[Rows], list[Rows]]]) -> dict[int, tuple[list[Rows], list[Rows]]]:
    """Corrupt rows replaced by their means over pairs. First tokens have one of their own: they hold most of the norm."""
    found: dict[int, tuple[list[Rows], list[Rows]]] = {index: (clean, []) for index, (clean, _) in outputs.items()}
    for sender in range(len(next(iter(outputs.values()))[1])):
        rows = [corrupt[sender] for _, corrupt in outputs.values()]
        if len({len(one) for one in rows}) == 1:
            by_position = np.mean(rows, axis=0)
            means = [by_position] * len(rows)
        else:
            first = np.mean([one[0] for one in rows], axis=0)
            others = np.concatenate([one[1:] for one in rows])
            rest = others.mean(axis=0) if len(others) else first
            means = [np.stack([first, *[rest] * (len(one) - 1)]) for one in rows]
        for (_, into), mean in zip(found.values(), means, strict=True):
            into.append(mean)
    return found


def _wide(rows: Rows) -> Rows:
    """As float64 where the model runs in float64, else float32: half precision would round the sums."""
    return np.asarray(rows, dtype=np.float64 if rows.dtype == np.float64 else np.float32)
