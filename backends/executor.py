"""Applies plans to the tensors of one forward, for every sequence in the batch at once.

A backend calls `begin` with the rows of this forward, `tap` at each site as the forward reaches it, and `collect` at
the end. Each sequence sees its own rows alone, at absolute positions, whatever the batch, chunk or page did.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..protos.errors import Internal, InvalidArgument, ProbewireError
from ..protos.latents import ReadLatents
from ..protos.sites import ATTENTION_SITES, Site
from .base import Rows, Sequence
from .captures import Collector
from .edit import Edits
from .latent_reads import Taker
from .ops import Ops
from .plan import BoundHook, BoundPlan, choose

if TYPE_CHECKING:
    from .backward import Backward

__all__ = ["Executor", "Slot"]


@dataclass(eq=False, slots=True)
class Slot:
    """Where one sequence's rows lie in this forward's tensors."""

    sequence: Sequence
    batch: int
    """Index on the batch axis."""
    start: int
    """First row on the position axis."""
    stop: int
    position: int
    """Absolute position of the first row."""
    tokens: NDArray[np.int64] | None = None
    """Input tokens of the rows; None when not known on the host (and no hook needs them)."""
    keys: tuple[int, int] | None = None
    """Range on the key axis, where the batch's keys are packed."""
    masked: Any = None
    """At attn_*: which keys each row cannot see, [row, 1 or head, key]."""
    error: ProbewireError | None = None
    """Set when a hook of this sequence failed; its later hooks are skipped."""
    conditions: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    """(hook, site index) → boolean row mask, read at an earlier site."""
    encoded: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    """(hook, site index) → the rows whose latents' gradients are asked for."""
    choices: dict[tuple[int, str], Any] = field(default_factory=dict[tuple[int, str], Any])
    plan: BoundPlan = field(init=False)
    """The sequence's when this forward began: a live session may give the sequence another for the next one."""

    def __post_init__(self) -> None:
        self.plan = self.sequence.plan

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probability of the token sampled from it is asked for."""
        return self.sequence.sampling.logprobs is not None or self.plan.wants_next_logprob

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def positions(self) -> NDArray[np.int64]:
        """Absolute positions of the rows."""
        return np.arange(self.position, self.position + self.n)


class Executor:
    """Hooks at work. One a backend; used by the thread that owns the model."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.edits = Edits(ops)
        self.slots: list[Slot] = []
        self.asked: set[Site] = set()
        """Sites that some sequence of this forward asks for: asked at every site of every layer, so kept."""
        self.reached: Counter[Site] = Counter()
        """How often this forward reached each raw module."""
        self.layout = (0, 0)
        """Sizes of the batch and row axes of this forward: a raw tensor without them cannot be matched to tokens."""
        self.collector = Collector(ops)
        self.backward: Backward | None = None
        """Set while a forward is made for gradients."""
        self.hook_s = 0.0
        """Seconds spent in `tap` since the start."""

    def begin(self, slots: SequenceOf[Slot], layout: tuple[int, int], backward: Backward | None = None) -> None:
        """Start a forward over [batch, row, …] tensors of the given layout."""
        self.layout, self.backward = layout, backward
        self.slots = [slot for slot in slots if slot.plan.by_site]
        self.asked = {site for slot in self.slots for site in slot.plan.taps}
        if backward is not None:
            self.asked |= backward.sites
        self.collector = Collector(self.ops)
        self.reached.clear()

    def wanting(self, *sites: Site) -> list[Slot]:
        """The slots that ask for any of the sites."""
        if self.asked.isdisjoint(sites):
            return []
        return [s for s in self.slots if any(site in s.plan.taps for site in sites)]

    def tap(
        self,
        site: Site,
        value: Any,
        *,
        linear_input: Any = None,
        in_place: bool = False,
        slots: SequenceOf[Slot] | None = None,
        owner: Slot | None = None,
    ) -> Any:
        """Read and edit `value` ([batch, row, …]) at a site. Returns the value to go on with.

        A hook that fails marks its own slot; nothing is raised, so neighbours do not notice. `owner`: the slot whose
        rows alone `value` holds.
        """
        if site.name == "module":
            self.reached[site] += 1
        start_s = time.perf_counter()
        if self.backward is not None:
            entered = self.backward.enter(site, value)
            if in_place and entered is not value:
                value[...] = entered  # what else holds the tensor goes on with it too
            else:
                value = entered
        result, plain, takers = value, list[tuple[Slot, BoundHook]](), list[Taker]()
        for slot in self.slots if slots is None else slots:
            plan = slot.plan
            if (bound := plan.plain.get(site)) is not None:
                chosen = self._chosen(slot, bound, site)
                if chosen is None:
                    plain.append((slot, bound))
                if chosen is None or not len(chosen):
                    continue
            if slot.error is not None or (site not in plan.by_site and site not in plan.conditions):
                continue
            if (bound := plan.latents.get(site)) is not None:
                chosen = self._chosen(slot, bound, site)
                rows = np.arange(slot.n) if chosen is None else chosen
                if len(rows):
                    takers.append(Taker(slot, bound, rows))
                continue
            rows = result[slot.batch, slot.start : slot.stop]
            if any(bound.hook.edit is not None for bound, _ in plan.by_site.get(site, ())):
                rows = self.ops.copy(rows)  # what is captured here must not see the write below
            source = None if linear_input is None else linear_input[slot.batch, slot.start : slot.stop]
            try:
                edited = self.tap_rows(site, slot, rows, linear_input=source)
            except Exception as error:  # noqa: BLE001 - a fault in one request's hook must not reach its neighbours
                slot.error = _as_error(error, site)
                continue
            if edited is rows:
                continue
            if not in_place and result is value:
                result = self.ops.copy(value)
            result[slot.batch, slot.start : slot.stop] = edited
        if plain:
            self.collector.add_whole(site, value, plain)
        if takers:
            self._read_latents(site, value, takers)
        if self.backward is not None:  # last, as it may end the forward
            result = self.backward.leave(site, result, in_place=in_place, slot=owner)
        self.hook_s += time.perf_counter() - start_s
        return result

    def _read_latents(self, site: Site, value: Any, takers: list[Taker]) -> None:
        for group in self.collector.together.groups(takers):
            try:
                self.collector.together.add(site, value, group)
            except Exception as error:  # noqa: BLE001 - as in `tap`; these asked for the same
                for taker in group:
                    taker.slot.error = _as_error(error, site)

    def tap_one(self, site: Site, slot: Slot, rows: Any) -> Any:
        """Like `tap`, for a site that a backend computes one sequence at a time."""
        plan = slot.plan
        if slot.error is not None or (site not in plan.by_site and site not in plan.conditions):
            return rows
        try:
            rows = self.tap_rows(site, slot, rows)
            return rows if self.backward is None else self.backward.leave(site, rows, slot=slot)
        except Exception as error:  # noqa: BLE001 - as in `tap`
            slot.error = _as_error(error, site)
            return rows

    def fail_wanting(self, sites: SequenceOf[Site], reason: str) -> None:
        """Fail the sequences that ask for sites which turned out not to be readable."""
        for slot in self.wanting(*sites):
            slot.error = slot.error or InvalidArgument(f"{sites[0]}: {reason}")

    def tap_rows(self, site: Site, slot: Slot, rows: Any, *, linear_input: Any = None) -> Any:
        """Read and edit one sequence's rows ([row, …]; attn_*: [row, head, key]); the same object when unchanged."""
        plan = slot.plan
        raw = current = rows
        for bound, index in plan.by_site.get(site, ()):
            chosen = self._chosen(slot, bound, site)
            mask = self._condition(slot, bound, index, site, current)
            if chosen is not None and not len(chosen):
                continue
            if bound.hook.edit is not None:
                current = self._edit(slot, bound, index, site, current, chosen, mask, linear_input)
            if bound.hook.capture is not None and not bound.hook.capture.gradient:
                value = raw if bound.hook.capture.before else current
                self.collector.add(slot, bound, index, site, value, chosen, mask)
        for bound, index in plan.conditions.get(site, ()):
            slot.conditions[bound.index, index] = self._evaluate(slot, bound, index, current)
        if self.backward is not None:
            self._keep_encoded(site, slot, current)
        return current

    def _keep_encoded(self, site: Site, slot: Slot, rows: Any) -> None:
        for bound, index in slot.plan.by_site.get(site, ()):
            if (capture := bound.hook.capture) and capture.gradient and isinstance(capture.reduce, ReadLatents):
                slot.encoded[bound.index, index] = self.ops.stop(rows)

    def _chosen(self, slot: Slot, bound: BoundHook, site: Site) -> NDArray[np.int64] | None:
        """Row numbers within the slot that the hook applies to; None for all of them."""
        key = (bound.index, "logits" if site.name == "logits" else "")
        if key not in slot.choices:
            mask = choose(bound, slot.plan, site, slot.positions, slot.tokens)
            slot.choices[key] = None if mask.all() else np.flatnonzero(mask)
        return slot.choices[key]

    def _edit(
        self,
        slot: Slot,
        bound: BoundHook,
        index: int,
        site: Site,
        rows: Any,
        chosen: NDArray[np.int64] | None,
        mask: Any,
        linear_input: Any,
    ) -> Any:
        ops = self.ops
        picked = None if chosen is None else ops.index(chosen)
        old = rows if picked is None else ops.take(rows, picked, 0)
        source = linear_input if linear_input is None or picked is None else ops.take(linear_input, picked, 0)
        positions = slot.positions if chosen is None else slot.positions[chosen]
        new = ops.like(self.edits.apply(bound, index, site, ops.f32(old), positions, source), rows)
        if site.name in ATTENTION_SITES:
            masked = slot.masked if picked is None else ops.take(slot.masked, picked, 0)
            new = ops.where(masked, old, new)  # edits never reach masked keys: scores stay −inf, probabilities 0
        if mask is not None:
            mask = mask if picked is None else ops.take(mask, picked, 0)
            new = ops.where(mask.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
        return new if picked is None else ops.put(rows, picked, 0, new)

    def _condition(self, slot: Slot, bound: BoundHook, index: int, site: Site, rows: Any) -> Any:
        """Boolean row mask of a hook's condition, or None when it has none."""
        if bound.hook.where.when is None:
            return None
        if bound.condition_site(site) == site:
            return self._evaluate(slot, bound, index, rows)
        if (bound.index, index) not in slot.conditions:
            raise Internal(f"the condition of hook {bound.index} was not evaluated before {site}")
        return slot.conditions[bound.index, index]

    def _evaluate(self, slot: Slot, bound: BoundHook, index: int, rows: Any) -> Any:
        when = bound.hook.where.when
        assert when is not None
        coordinate = self.edits.coordinate(bound, rows)
        if when.latch is not None:
            coordinate = self._latched(slot, bound, index, coordinate)
        compare = {"gt": "__gt__", "ge": "__ge__", "lt": "__lt__", "le": "__le__"}[when.op]
        return getattr(coordinate, compare)(when.threshold)

    def _latched(self, slot: Slot, bound: BoundHook, index: int, coordinate: Any) -> Any:
        """The prompt's one coordinate, for every row; prompt rows seen in this forward are taken in first."""
        when = bound.hook.where.when
        assert when is not None
        n_prompt = min(max(slot.plan.prompt_length - slot.position, 0), slot.n)
        if n_prompt:
            part = coordinate[:n_prompt]
            if when.latch == "last":
                bound.latch[index] = part[n_prompt - 1]
            else:
                total = self.ops.sum0(part) / slot.plan.prompt_length
                bound.latch[index] = total if index not in bound.latch else bound.latch[index] + total
        if index not in bound.latch:
            raise Internal(f"hook {bound.index}: no prompt row was seen before a generated one")
        return bound.latch[index] + self.ops.zeros_like(coordinate)

    def add_gradient(self, site: Site, slot: Slot, rows: Any) -> None:
        """Collect the gradient of a slot's rows at a site, for the hooks that ask for it."""
        for bound, index in slot.plan.by_site.get(site, ()):
            if bound.hook.capture is not None and bound.hook.capture.gradient:
                chosen = self._chosen(slot, bound, site)
                if chosen is not None and not len(chosen):
                    continue
                encoded = slot.encoded.get((bound.index, index))
                try:
                    self.collector.add(slot, bound, index, site, rows, chosen, None, encoded=encoded)
                except Exception as error:  # noqa: BLE001 - as in `tap`
                    slot.error = slot.error or _as_error(error, site)

    def collect(self) -> dict[int, list[Rows]]:
        """End the forward: every captured row on the host, by id of the slot's sequence."""
        self._check_raw()
        rows = self.collector.finish()
        out: dict[int, list[Rows]] = {}
        for slot, found in rows.items():
            out.setdefault(id(slot.sequence), []).extend(found)
        return out

    def _check_raw(self) -> None:
        """Fail the sequences whose raw module did not run once: what they asked for would be missing, or twice."""
        for slot in self.slots:
            for site in slot.plan.taps:
                if site.name == "module" and self.reached[site] != 1 and slot.error is None:
                    times = f"ran {self.reached[site]} times" if self.reached[site] else "did not run"
                    slot.error = InvalidArgument(f"{site}: the module {times} in a forward; ask for one that runs once")


def _as_error(error: Exception, site: Site) -> ProbewireError:
    if isinstance(error, ProbewireError):
        return error
    # torch says RuntimeError of tensors that do not go together, as of much else.
    misfit = isinstance(error, RuntimeError) and any(word in str(error) for word in ("size", "shape"))
    if misfit or isinstance(error, (ValueError, IndexError)):
        return InvalidArgument(f"a hook at {site} failed: {error}")
    return Internal(f"a hook at {site} failed: {type(error).__name__}: {error}")
