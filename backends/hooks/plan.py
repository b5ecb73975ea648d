"""From a plan to what it means for one sequence: sites expanded, widths and positions checked, order settled.

Both backends use it as it is, so that both refuse the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence as SequenceOf
from dataclasses import dataclass, replace

from ...protos.edits import FromInput, Replace, Scale
from ...protos.errors import InvalidArgument, NotFound
from ...protos.latents import ReadLatents
from ...protos.sites import Site
from ...protos.spec import Hook, Plan, Where
from ..saes.sae import Sae, check_latents, saes_of
from ..saes.user_assets import EMPTY, UserAssets
from .bound import Acting, Bindable, BoundHook, BoundPlan, Mode
from .checks import check_hook, expand
from .points import Point, Points
from .source_rows import attach_source, check_keys_left

__all__ = ["Gate", "VariantHook", "bind", "hook_saes", "succeed"]


FIRST_OF_VARIANTS = 1 << 29
"""Index of the first hook that a variant brings, behind all of a plan's."""
FIRST_OF_GATES = 1 << 30
"""… and of the first condition of a variant's use."""


@dataclass(frozen=True, slots=True)
class VariantHook:
    """A hook of a variant's plan, as one input runs with it."""

    hook: Hook
    what: str
    """How messages name it."""
    strength: float = 1.0
    within: Where | None = None
    gate: str = ""
    """Name of the gate that it waits for."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The condition of a variant's use: read at the prompt, where it changes nothing."""

    name: str
    where: Where

    @property
    def hook(self) -> Hook:
        """Something that would act where the last of its conditions is read."""
        assert self.where.when is not None
        sites = sorted((one.site for one in self.where.when.parts), key=lambda name: Site.parse(name).order or (0, 0))
        return Hook(sites[-1], edit=Scale(1.0), where=Where(when=self.where.when))


def bind(
    plan: Plan,
    model: Bindable,
    *,
    mode: Mode,
    input_name: str,
    tokens: list[int],
    prompt_length: int,
    n_rows: int,
    input_lengths: Mapping[str, int] | None = None,
    assets: UserAssets = EMPTY,
    applied_last: int = 0,
    first: SequenceOf[VariantHook] = (),
    gates: SequenceOf[Gate] = (),
) -> BoundPlan:
    """Check the hooks of a plan that apply to one input and make them concrete.

    `input_lengths` holds the token counts of the request's inputs, for hooks that read another one: they come back
    with `needs` set, to be filled by `give_rows`. `assets` holds stored captures and SAEs. The first `applied_last` hooks
    apply after all others: a request's own, which see what its session has edited. Those of variants, `first`, apply before
    all. `gates` come back among `BoundPlan.gates`. Raises InvalidArgument with the hook's index, the reason and the fix.
    """
    hooks: list[BoundHook] = []
    for index, hook in enumerate(plan.hooks):
        if hook.inputs is not None and input_name not in hook.inputs:
            continue
        if hook.inputs is None and _reads_from(hook) == input_name:
            continue  # a source is never patched with itself
        where = f"hook {index} ({hook.site})"
        sites = expand(hook, model.info, where)
        check_hook(hook, sites, model, mode, where, prompt_length=prompt_length, n_rows=n_rows)
        bound = BoundHook(index, hook, sites, saes=hook_saes(hook, sites, assets, where))
        hooks.append(bound)
    waiting = {
        gate.name: _of_variant(
            FIRST_OF_GATES + i, VariantHook(gate.hook, gate.name), model, assets, mode, prompt_length, n_rows
        )
        for i, gate in enumerate(gates)
    }
    theirs = [
        _of_variant(FIRST_OF_VARIANTS + i, one, model, assets, mode, prompt_length, n_rows, waiting.get(one.gate))
        for i, one in enumerate(first)
    ]
    by_site: dict[Site, list[tuple[BoundHook, int]]] = {}
    in_order = [*theirs, *sorted(hooks, key=lambda bound: bound.index < applied_last)]
    hooks += theirs
    for bound in in_order:
        for i, site in enumerate(bound.sites):
            by_site.setdefault(site, []).append((bound, i))
    at = _by_point(in_order, model.points, list(waiting.values()))
    alone = {point: acting[0] for point, acting in at.items() if len(acting) == 1 and acting[0].reads is None}
    plain = {point: one for point, one in alone.items() if _is_plain(one.bound.hook, one.site)}
    latents = {point: one for point, one in alone.items() if _only_reads_latents(one.bound.hook)}
    sites = frozenset(one.site for acting in at.values() for one in acting)
    bound_plan = BoundPlan(
        mode, prompt_length, n_rows, (*hooks, *waiting.values()), by_site, at, plain, latents, sites, gates=waiting
    )
    for bound in hooks:
        attach_source(bound, bound_plan, model, tokens, input_lengths or {}, assets.captures)
        check_keys_left(bound, bound_plan, tokens)
    return bound_plan


def _of_variant(
    index: int,
    one: VariantHook,
    model: Bindable,
    assets: UserAssets,
    mode: Mode,
    prompt_length: int,
    n_rows: int,
    gate: BoundHook | None = None,
) -> BoundHook:
    where = f"{one.what} ({one.hook.site})"
    sites = expand(one.hook, model.info, where)
    check_hook(one.hook, sites, model, mode, where, prompt_length=prompt_length, n_rows=n_rows)
    saes = hook_saes(one.hook, sites, assets, where)
    return BoundHook(index, one.hook, sites, saes=saes, strength=one.strength, within=one.within, gate=gate)


def _by_point(hooks: list[BoundHook], points: Points, gates: list[BoundHook]) -> dict[Point, list[Acting]]:
    """What acts at each tensor, in order; conditions are read once all that they see has acted. Of gates nothing acts."""
    found: dict[Point, list[Acting]] = {}
    reading: dict[Point, list[Acting]] = {}
    for bound in hooks:
        for i, site in enumerate(bound.sites):
            spot = points.spot(site)
            found.setdefault(spot.point, []).append(Acting(bound, i, site, spot.view))
            for number, read in enumerate(bound.condition_sites(site)):
                if read != site:
                    spot = points.spot(read)
                    reading.setdefault(spot.point, []).append(Acting(bound, i, read, spot.view, reads=number))
    for bound in gates:
        for number, read in enumerate(bound.condition_sites(bound.sites[0])):
            spot = points.spot(read)
            reading.setdefault(spot.point, []).append(Acting(bound, 0, read, spot.view, reads=number))
    return {
        point: _ordered(found.get(point, []), reading.get(point, [])) for point in dict.fromkeys((*found, *reading))
    }


def _ordered(acting: list[Acting], reading: list[Acting]) -> list[Acting]:
    """Names of one tensor act in plan order; parts of a tensor, of which none is named whole, as the forward makes them.

    Raises InvalidArgument where a condition would have to see edits that come after its own hook's.
    """
    raw = any(one.site.name == "module" for one in acting)
    if not raw:
        acting = sorted(acting, key=lambda one: one.site.order or (0, 0))
    done: set[Site] = set()
    out: list[Acting] = []
    for one in acting:
        name = one.site if not raw else acting[0].site
        out.append(replace(one, first=name not in done))
        done.add(name)
    for one in reading:
        after = max(
            (i for i, other in enumerate(out) if other.site == one.site or other.site.name == "module"), default=-1
        )
        itself = (one.bound.index, one.index)
        own = next(
            (i for i, o in enumerate(out) if o.reads is None and (o.bound.index, o.index) == itself),
            None,
        )
        if own is not None and own <= after:
            raise InvalidArgument(
                f"hook {one.bound.index} ({one.bound.hook.site}): its condition reads {one.site}, which a later hook at "
                "the same tensor changes; put that hook first"
            )
        out.insert(after + 1, one)
    return out


def hook_saes(hook: Hook, sites: tuple[Site, ...], assets: UserAssets, where: str) -> dict[str, Sae]:
    """The SAEs that a hook names, checked against what it asks of them. Raises NotFound and InvalidArgument."""
    found: dict[str, Sae] = {}
    for name in saes_of(hook):
        try:
            found[name] = assets.saes[name]
        except KeyError:
            known = ", ".join(assets.saes) or "none"
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
        if when is None or not when.latched:
            continue
        latch = next((latch for hook, latch in known if hook == bound.hook), None)
        if latch is None:
            what = "a variant's condition" if bound.index >= FIRST_OF_VARIANTS else f"hook {bound.index}"
            raise InvalidArgument(
                f"{what} ({bound.hook.site}) latches on the prompt, which a running generation has passed; "
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
