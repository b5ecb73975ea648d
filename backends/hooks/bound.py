"""A plan made concrete for one sequence: what acts at which tensor, and on which rows.

No array library but numpy: both backends use it as it is, so that both choose the same.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ...protos.conditions import AnyOf
from ...protos.gradients import IntegratedPath
from ...protos.model import ModelInfo
from ...protos.sites import Site
from ...protos.spec import Condition, Hook, NextLogprob, Where
from ...protos.tensors import Array
from ..saes.sae import Sae
from .points import Point, Points, View

if TYPE_CHECKING:
    from ..deltas.factors import BoundUse

__all__ = [
    "Acting",
    "Bindable",
    "BoundBackward",
    "BoundHook",
    "BoundPath",
    "BoundPlan",
    "Mode",
    "choose",
    "chosen_by",
    "chosen_positions",
]

Mode = Literal["run", "generate", "gradients", "sweep"]


class Bindable(Protocol):
    """What a plan is bound to: a backend, of which only this is asked."""

    @property
    def info(self) -> ModelInfo:
        """What the model offers."""
        ...

    @property
    def points(self) -> Points:
        """Where its sites are."""
        ...


@dataclass(eq=False, slots=True)
class BoundHook:
    """One hook of one sequence."""

    index: int
    """Index in the plan."""
    hook: Hook
    sites: tuple[Site, ...]
    source: Array | None = None
    """Rows that a `replace` brings: [row, …] (attn_*: [row, head, key]); [site, row, …] when `per_site`."""
    per_site: bool = False
    needs: tuple[str, tuple[int, ...]] | None = None
    """(input, positions) that `source` must still be taken from, when a `replace` reads another input."""
    row_of: dict[int, int] = field(default_factory=dict[int, int])
    """Absolute position → source row."""
    device: dict[Hashable, dict[str, Any]] | None = None
    """The backend's own tensors for the hook, by device (Ops.here), each made once; None: to be bound again."""
    saes: dict[str, Sae] = field(default_factory=dict[str, Sae])
    """The SAEs that it names."""
    latch: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    """(site index, condition's index) → what the prompt has decided so far (device scalars)."""
    strength: float = 1.0
    """How much of the edit is made: of a variant's hook, the scale that it is used at."""
    within: Where | None = None
    """Rows beyond which it does not act: of a variant's hook, those that it is used at."""
    gate: BoundHook | None = None
    """Of a variant's hook: what the prompt decides of its use."""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What must hold of a row, each by itself or all or any of them."""
        when = self.hook.where.when
        return () if when is None else when.parts

    @property
    def decided(self) -> bool:
        """Whether its latched conditions hold, once the prompt has been read. Waits for the device."""
        when = self.hook.where.when
        held = [_holds(one, float(self.latch[0, number])) for number, one in enumerate(self.conditions)]
        return any(held) if isinstance(when, AnyOf) else all(held)

    def condition_sites(self, site: Site) -> tuple[Site, ...]:
        """Where each of this hook's conditions reads, when it acts at `site`."""
        return tuple(Site.parse(one.site) if one.site else site for one in self.conditions)


def _holds(when: Condition, coordinate: float) -> bool:
    compare = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}[when.op]
    return bool(compare(coordinate, when.threshold))


@dataclass(frozen=True, slots=True, eq=False)
class Acting:
    """A hook at the tensor of one of its sites; or only its condition, where that reads another site's."""

    bound: BoundHook
    index: int
    """Of the site among the hook's."""
    site: Site
    view: View
    reads: int | None = None
    """Index of the condition of which this is the reading; None: the hook itself."""
    first: bool = False
    """Of those that act on what the site names: what comes before it is the value before any edit."""


@dataclass(eq=False, slots=True)
class BoundPlan:
    """All hooks of one sequence, ready to look up by site and by tensor."""

    mode: Mode
    prompt_length: int
    n_rows: int
    """Rows the sequence can have at most: run: its tokens; generation: prompt + max_new_tokens − 1."""
    hooks: tuple[BoundHook, ...]
    by_site: dict[Site, list[tuple[BoundHook, int]]]
    """Site → (hook, index among the hook's sites), in plan order."""
    at: dict[Point, list[Acting]]
    """Tensor → what acts on it, in the order in which it does."""
    plain: dict[Point, Acting]
    """Tensors of which one unconditional, unreduced capture is all that is asked: fast for forwards of which it takes all rows."""
    latents: dict[Point, Acting] = field(default_factory=dict[Point, Acting])
    """Tensors of which one unconditional reading of latents is all that is asked: sequences are then encoded together."""
    sites: frozenset[Site] = frozenset()
    """Every site that must be reached, those that conditions read too."""
    revision: int = 0
    """Of the session that the plan came from; 0 without one."""
    owner: Any = None
    """Scratch space of the executor (reduction state)."""
    uses: tuple[BoundUse, ...] = ()
    """The variants whose deltas its rows run with."""
    gates: Mapping[str, BoundHook] = field(default_factory=dict[str, BoundHook])
    """The conditions of variants' uses, by name; they are among the hooks too, at the end."""

    @property
    def last_layer(self) -> int | None:
        """The last layer at whose sites anything acts (−1: the embedding alone); None where all layers must run."""
        layers = [-1 if site.name == "embed" else site.layer for site in self.sites]
        known = [layer for layer in layers if layer is not None]
        return max(known) if layers and len(known) == len(layers) else None

    @property
    def wants_prompt_logits(self) -> bool:
        """Some hook asks for logits of prompt rows before the last."""
        if not self.prompt_length:
            return False
        before_last = np.arange(self.prompt_length - 1)
        return any(
            choose(bound, self, site, before_last, None).any()
            for site in self.by_site
            if site.name == "logits"
            for bound, _ in self.by_site[site]
        )

    @property
    def next_logprobs(self) -> list[NextLogprob]:
        """What hooks ask for of the log-probability of the token that follows."""
        asked = [b.hook.capture.reduce for b in self.hooks if b.hook.capture is not None]
        return [reduce for reduce in asked if isinstance(reduce, NextLogprob)]

    @property
    def reads_tokens(self) -> bool:
        """Which rows are meant depends on their tokens."""
        wheres = (
            *(bound.hook.where for bound in self.hooks),
            *(bound.within for bound in self.hooks if bound.within is not None),
            *(use.where for use in self.uses),
        )
        return any(where.token_ids is not None for where in wheres)


@dataclass(eq=False, slots=True)
class BoundPath:
    """An integrated path of one sequence."""

    path: IntegratedPath
    other: BoundHook
    """The other input's rows at the path's site, once that has run."""


@dataclass(eq=False, slots=True)
class BoundBackward:
    """How the gradient of one sequence's metric is taken."""

    rules: frozenset[str] = frozenset()
    direct: bool = False
    path: BoundPath | None = None

    @property
    def kind(self) -> tuple[Any, ...]:
        """Sequences of one kind can share a forward."""
        return (tuple(sorted(self.rules)), self.direct, None if self.path is None else self.path.path)


def _among(positions: NDArray[np.int64], listed: list[int]) -> NDArray[np.bool_]:
    """Which of some ascending positions are listed; a sweep asks this many thousand times, of few positions each."""
    mask = np.zeros(len(positions), dtype=bool)
    first = int(positions[0]) if len(positions) else 0
    if len(positions) and int(positions[-1]) - first + 1 != len(positions):
        return np.isin(positions, listed)
    for position in listed:
        if 0 <= position - first < len(mask):
            mask[position - first] = True
    return mask


def chosen_positions(bound: BoundHook, plan: BoundPlan, tokens: list[int]) -> NDArray[np.int64]:
    """Every absolute position the hook chooses, whatever its condition will say."""
    known = np.arange(plan.n_rows)
    padded = np.full(plan.n_rows, -1, dtype=np.int64)
    padded[: len(tokens)] = tokens[: plan.n_rows]
    return known[choose(bound, plan, bound.sites[0], known, padded)]


def choose(
    bound: BoundHook, plan: BoundPlan, site: Site, positions: NDArray[np.int64], tokens: NDArray[np.int64] | None
) -> NDArray[np.bool_]:
    """Which of the rows at `positions` (with input tokens `tokens`) the hook applies to, before its condition."""
    where: Where = bound.hook.where
    mask = chosen_by(where, plan, positions, tokens)
    if bound.within is not None:
        mask &= chosen_by(bound.within, plan, positions, tokens)
    if site.name == "logits" and plan.mode == "generate" and _asks_for_no_prompt_rows(where):
        mask &= positions >= plan.prompt_length - 1
    return mask


def chosen_by(
    where: Where, plan: BoundPlan, positions: NDArray[np.int64], tokens: NDArray[np.int64] | None
) -> NDArray[np.bool_]:
    """Which of the rows at `positions` are meant, whatever a condition says."""
    prompt = plan.prompt_length
    mask = np.ones(len(positions), dtype=bool)
    if where.positions is not None:
        mask &= _among(positions, [p + prompt if p < 0 else p for p in where.positions])
    if where.spans is not None:
        inside = np.zeros(len(positions), dtype=bool)
        for span in where.spans:
            start = span.start + prompt if span.start < 0 else span.start
            stop = plan.n_rows if span.stop is None else span.stop + prompt if span.stop < 0 else span.stop
            inside |= (positions >= start) & (positions < stop)
        mask &= inside
    if where.phase == "prompt":
        mask &= positions < prompt
    elif where.phase == "generated" or (where.when is not None and where.when.latched):
        mask &= positions >= prompt
    if where.token_ids is not None and tokens is not None:
        mask &= np.isin(tokens, where.token_ids)
    return mask


def _asks_for_no_prompt_rows(where: Where) -> bool:
    return where.positions is None and where.spans is None and where.phase == "all"
