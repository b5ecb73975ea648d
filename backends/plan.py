"""A plan made concrete for one sequence: sites expanded, widths and positions checked, rows chosen.

No array library but numpy: both backends use it as it is, so that both refuse and choose the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..protos.edits import Constant, FromInput, Inline, Replace, Stored
from ..protos.errors import InvalidArgument, NotFound
from ..protos.latents import ReadLatents
from ..protos.model import ModelInfo
from ..protos.sites import Site
from ..protos.spec import Hook, Plan, Where
from ..protos.tensors import Array
from .checks import check_hook, expand
from .saes.sae import Sae, check_latents, saes_of
from .saes.shelf import EMPTY, Shelf

__all__ = ["BoundHook", "BoundPlan", "Mode", "bind", "choose", "chosen_positions", "give_rows", "succeed"]

Mode = Literal["run", "generate", "gradients", "sweep"]


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
    device: Any = None
    """The backend's own tensors for the edit, made once by its executor."""
    saes: dict[str, Sae] = field(default_factory=dict[str, Sae])
    """The SAEs that it names."""
    latch: dict[int, Any] = field(default_factory=dict[int, Any])
    """Site index → what the prompt has decided so far (device scalars)."""

    def condition_site(self, site: Site) -> Site:
        """Where this hook's condition reads, when it acts at `site`."""
        when = self.hook.where.when
        assert when is not None
        return Site.parse(when.site) if when.site else site


@dataclass(eq=False, slots=True)
class BoundPlan:
    """All hooks of one sequence, ready to look up by site."""

    mode: Mode
    prompt_length: int
    n_rows: int
    """Rows the sequence can have at most: run: its tokens; generation: prompt + max_new_tokens − 1."""
    hooks: tuple[BoundHook, ...]
    by_site: dict[Site, list[tuple[BoundHook, int]]]
    """Site → (hook, index among the hook's sites), in plan order."""
    conditions: dict[Site, list[tuple[BoundHook, int]]]
    """Site that a condition reads → hooks that act at a later site."""
    plain: dict[Site, BoundHook]
    """Sites where one unconditional, unreduced capture is all that is asked: fast for forwards of which it takes all rows."""
    latents: dict[Site, BoundHook] = field(default_factory=dict[Site, BoundHook])
    """Sites where one unconditional reading of latents is all that is asked: sequences are then encoded together."""
    revision: int = 0
    """Of the session that the plan came from; 0 without one."""
    owner: Any = None
    """Scratch space of the executor (reduction state)."""

    @property
    def taps(self) -> set[Site]:
        """Every site that must be reached."""
        return set(self.by_site) | set(self.conditions)

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
    def wants_next_logprob(self) -> bool:
        """Some hook asks for the log-probability of the token that follows."""
        from ..protos.spec import NextLogprob

        return any(b.hook.capture is not None and isinstance(b.hook.capture.reduce, NextLogprob) for b in self.hooks)


def bind(
    plan: Plan,
    info: ModelInfo,
    *,
    mode: Mode,
    input_name: str,
    tokens: list[int],
    prompt_length: int,
    n_rows: int,
    input_lengths: Mapping[str, int] | None = None,
    shelf: Shelf = EMPTY,
    applied_last: int = 0,
) -> BoundPlan:
    """Check the hooks of a plan that apply to one input and make them concrete.

    `input_lengths` holds the token counts of the request's inputs, for hooks that read another one: they come back
    with `needs` set, to be filled by `give_rows`. `shelf` holds stored captures and SAEs. The first `applied_last` hooks
    apply after all others: a request's own, which see what its session has edited. Raises InvalidArgument with the hook's index, the reason and the fix.
    """
    hooks: list[BoundHook] = []
    for index, hook in enumerate(plan.hooks):
        if hook.inputs is not None and input_name not in hook.inputs:
            continue
        if hook.inputs is None and _reads_from(hook) == input_name:
            continue  # a source is never patched with itself
        where = f"hook {index} ({hook.site})"
        sites = expand(hook, info, where)
        check_hook(hook, sites, info, mode, where, tokens=len(tokens), prompt_length=prompt_length, n_rows=n_rows)
        bound = BoundHook(index, hook, sites, saes=hook_saes(hook, sites, shelf, where))
        hooks.append(bound)
    by_site: dict[Site, list[tuple[BoundHook, int]]] = {}
    conditions: dict[Site, list[tuple[BoundHook, int]]] = {}
    for bound in sorted(hooks, key=lambda bound: bound.index < applied_last):
        for i, site in enumerate(bound.sites):
            by_site.setdefault(site, []).append((bound, i))
            if bound.hook.where.when is not None:
                read = bound.condition_site(site)
                if read != site:
                    conditions.setdefault(read, []).append((bound, i))
    alone = {site: found[0][0] for site, found in by_site.items() if len(found) == 1 and site not in conditions}
    plain = {site: bound for site, bound in alone.items() if _is_plain(bound.hook, site)}
    latents = {site: bound for site, bound in alone.items() if _only_reads_latents(bound.hook)}
    bound_plan = BoundPlan(mode, prompt_length, n_rows, tuple(hooks), by_site, conditions, plain, latents)
    for bound in hooks:
        _attach_source(bound, bound_plan, tokens, input_lengths or {}, shelf.captures)
    return bound_plan


def hook_saes(hook: Hook, sites: tuple[Site, ...], shelf: Shelf, where: str) -> dict[str, Sae]:
    """The SAEs that a hook names, checked against what it asks of them. Raises NotFound and InvalidArgument."""
    found: dict[str, Sae] = {}
    for name in saes_of(hook):
        try:
            found[name] = shelf.saes[name]
        except KeyError:
            known = ", ".join(shelf.saes) or "none"
            raise NotFound(
                f"{where}: no SAE {name!r} is loaded for you on this model; loaded: {known}; load it first"
            ) from None
        check_latents(hook, sites, found[name], where)
    return found


def succeed(old: BoundPlan, new: BoundPlan) -> None:
    """Let a plan take over from another whose sequence has begun: what unchanged hooks latched from the prompt stays.

    Raises InvalidArgument for a hook that would have to latch from a prompt which is past.
    """
    known = [(bound.hook, bound.latch) for bound in old.hooks]
    for bound in new.hooks:
        when = bound.hook.where.when
        if when is None or when.latch is None:
            continue
        latch = next((latch for hook, latch in known if hook == bound.hook), None)
        if latch is None:
            raise InvalidArgument(
                f"hook {bound.index} ({bound.hook.site}) latches on the prompt, which a running generation has passed; "
                "leave latch off, or update the session when nothing runs on it"
            )
        bound.latch.update(latch)


def _is_plain(hook: Hook, site: Site) -> bool:
    """Whether a hook only captures, and takes rows as they are."""
    if hook.edit is not None or hook.where.when is not None or site.name in ("logits", "attn_scores", "attn_probs"):
        return False
    capture = hook.capture
    return capture is not None and capture.reduce is None and capture.dtype is None and not capture.gradient


def _only_reads_latents(hook: Hook) -> bool:
    capture = hook.capture
    if hook.edit is not None or hook.where.when is not None or capture is None or capture.gradient:
        return False
    return isinstance(capture.reduce, ReadLatents)


def _reads_from(hook: Hook) -> str | None:
    edit = hook.edit
    return edit.source.input if isinstance(edit, Replace) and isinstance(edit.source, FromInput) else None


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
    prompt = plan.prompt_length
    mask = np.ones(len(positions), dtype=bool)
    if where.positions is not None:
        mask &= np.isin(positions, [p + prompt if p < 0 else p for p in where.positions])
    if where.spans is not None:
        inside = np.zeros(len(positions), dtype=bool)
        for span in where.spans:
            start = span.start + prompt if span.start < 0 else span.start
            stop = plan.n_rows if span.stop is None else span.stop + prompt if span.stop < 0 else span.stop
            inside |= (positions >= start) & (positions < stop)
        mask &= inside
    if where.phase == "prompt":
        mask &= positions < prompt
    elif where.phase == "generated" or (where.when is not None and where.when.latch is not None):
        mask &= positions >= prompt
    if where.token_ids is not None and tokens is not None:
        mask &= np.isin(tokens, where.token_ids)
    if site.name == "logits" and plan.mode == "generate" and _asks_for_no_prompt_rows(where):
        mask &= positions >= prompt - 1
    return mask


def _asks_for_no_prompt_rows(where: Where) -> bool:
    return where.positions is None and where.spans is None and where.phase == "all"


def _attach_source(
    bound: BoundHook,
    plan: BoundPlan,
    tokens: list[int],
    input_lengths: Mapping[str, int],
    stored: Mapping[str, Array],
) -> None:
    edit = bound.hook.edit
    if not isinstance(edit, Replace) or isinstance(edit.source, Constant):
        return
    source, where = edit.source, f"hook {bound.index} ({bound.hook.site})"
    positions = _in_listed_order(bound, plan, chosen_positions(bound, plan, tokens))
    if isinstance(source, Inline):
        bound.source = _rows_first(bound.sites[0], source.value.numpy())
    elif isinstance(source, Stored):
        if source.capture_id not in stored:
            raise NotFound(f"{where}: no stored capture {source.capture_id!r}")
        bound.source = _rows_first(bound.sites[0], stored[source.capture_id])
    elif isinstance(source, FromInput):
        bound.needs = (source.input, _source_positions(source, positions, input_lengths, where))
    else:
        return
    if bound.source is not None and len(bound.source) != len(positions):
        raise InvalidArgument(_MISMATCH.format(where=where, rows=len(bound.source), positions=len(positions)))
    bound.row_of = {int(p): i for i, p in enumerate(positions)}


_MISMATCH = (
    "{where}: the source has {rows} rows, but the hook chooses {positions} positions; they pair in order, so the "
    "numbers must match (narrow where.positions, or set where.phase to 'prompt')"
)


def _in_listed_order(bound: BoundHook, plan: BoundPlan, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions as the user listed them, which is how they pair with source rows; ascending where none were listed."""
    listed = bound.hook.where.positions
    if listed is None:
        return positions
    absolute = [p + plan.prompt_length if p < 0 else p for p in listed]
    return np.array([p for p in absolute if p in positions], dtype=np.int64)


def _source_positions(
    source: FromInput, positions: NDArray[np.int64], input_lengths: Mapping[str, int], where: str
) -> tuple[int, ...]:
    """Positions in the other input, checked against its length and the hook's own number."""
    if source.input not in input_lengths:
        names = ", ".join(input_lengths) or "none"
        raise InvalidArgument(f"{where}: there is no input {source.input!r} in this request; its inputs: {names}")
    length = input_lengths[source.input]
    wanted = tuple(int(p) for p in positions) if source.positions is None else source.positions
    absolute = tuple(p + length if p < 0 else p for p in wanted)
    outside = [p for p in absolute if not 0 <= p < length]
    if outside:
        raise InvalidArgument(
            f"{where}: positions {outside[:8]} are outside input {source.input!r}, which has {length} tokens "
            "(only prompt positions can be taken: set where.phase to 'prompt', or give from_input.positions)"
        )
    if len(absolute) != len(positions):
        raise InvalidArgument(_MISMATCH.format(where=where, rows=len(absolute), positions=len(positions)))
    return absolute


def give_rows(bound: BoundHook, rows: list[dict[int, Array]]) -> None:
    """Fill a hook's `needs`: for each of its sites, the other input's rows by position."""
    assert bound.needs is not None
    bound.source = np.stack([np.stack([by_position[p] for p in bound.needs[1]]) for by_position in rows])
    bound.per_site, bound.needs = True, None


def _rows_first(site: Site, value: Array) -> Array:
    return np.swapaxes(value, 0, 1) if site.name in ("attn_scores", "attn_probs") else value
