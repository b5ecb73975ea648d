"""Applies plans to the tensors of one forward, for every sequence in the batch at once.

A backend calls `begin` with the rows of this forward, `tap` at each point that is asked for as the forward reaches it,
and `collect` at the end. Each sequence sees its own rows alone, at absolute positions, whatever the batch, chunk or
page did. What fails, fails its own sequence.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...protos.edits import Replace
from ...protos.errors import Internal, InvalidArgument
from ...protos.latents import ReadLatents
from ...protos.sites import ATTENTION_SITES, Site
from ...protos.spec import AnyOf
from ..deltas.at_work import Deltas
from ..deltas.placed import Products
from ..ops import Ops
from ..terms import Terms
from .alarms import no_key_left
from .bound import Acting, BoundHook, choose
from .captures import Collector
from .edits import Edits
from .errors import as_error
from .latent_reads import RowSelection
from .points import Point, Points, View
from .row_span import RowSpan
from .sequence import Rows

if TYPE_CHECKING:
    from .backward import Backward

__all__ = ["Executor"]


class Executor:
    """Hooks at work. One a backend; used by the thread that owns the model."""

    def __init__(self, ops: Ops, products: Products | None = None, variant_bytes: int = 0) -> None:
        self.ops = ops
        self.points: Points
        """Set once the model has been looked at."""
        self.edits = Edits(ops)
        self.deltas = Deltas(products, most_bytes=variant_bytes)
        """What variants add to weights."""
        self.terms = Terms(self)
        self.slots: list[RowSpan] = []
        self.asked: set[Point] = set()
        """Points that some sequence of this forward asks for: asked at every one of every layer, so kept."""
        self.reached: Counter[Point] = Counter()
        """How often this forward reached each of them."""
        self.layout = (0, 0)
        """Sizes of the batch and row axes of this forward: a raw tensor without them cannot be matched to tokens."""
        self.collector = Collector(ops)
        self.backward: Backward | None = None
        """Set while a forward is made for gradients."""
        self.watching: dict[Point, list[tuple[Site, View]]] = {}
        """Named sites that `backward` is to be shown, in forward order."""
        self.hook_s = 0.0
        """Seconds spent in `tap` since the start."""

    def begin(self, slots: SequenceOf[RowSpan], layout: tuple[int, int], backward: Backward | None = None) -> None:
        """Start a forward over [batch, row, …] tensors of the given layout."""
        self.backward = backward
        self.hold(slots, layout)
        self.asked = {point for slot in self.slots for point in slot.plan.at}
        self.watching = {}
        if backward is not None:
            self._watch_for(backward)
        self.collector = Collector(self.ops)
        self.reached.clear()
        self.terms.clear()

    def hold(self, slots: SequenceOf[RowSpan], layout: tuple[int, int]) -> None:
        """From here on the batch of this forward is these sequences; none: nobody's rows pass."""
        self.slots = [slot for slot in slots if slot.plan.at]
        self.layout = layout
        self.deltas.place(slots, layout)

    def _watch_for(self, backward: Backward) -> None:
        named = {site for slot in self.slots for site in slot.plan.sites if site.order is not None}
        for site in sorted(named | backward.sites, key=lambda site: site.order or (0, 0)):
            spot = self.points.spot(site)
            self.asked.add(spot.point)
            self.watching.setdefault(spot.point, []).append((site, spot.view))

    def wanting(self, *points: Point) -> list[RowSpan]:
        """The slots that ask for any of the points."""
        if self.asked.isdisjoint(points):
            return []
        return [s for s in self.slots if any(point in s.plan.at for point in points)]

    def tap(
        self,
        point: Point,
        value: Any,
        *,
        linear_input: Any = None,
        slots: SequenceOf[RowSpan] | None = None,
        owner: RowSpan | None = None,
    ) -> Any:
        """Read and edit the tensor at a point, [batch, row, …]. Returns the value to go on with.

        A hook that fails marks its own slot; nothing is raised, so neighbours do not notice. `owner`: the slot whose
        rows alone `value` holds.
        """
        self.reached[point] += 1
        start_s = time.perf_counter()
        self.ops.near(value)
        if self.backward is not None:
            value = self._entered(point, value)
        result, plain, selections = value, list[tuple[RowSpan, BoundHook, Site]](), list[RowSelection]()
        view: View | None = None
        for slot in self.slots if slots is None else slots:
            plan = slot.plan
            if slot.error is not None or (acting := plan.at.get(point)) is None:
                continue
            if (one := plan.plain.get(point)) is not None:
                chosen = self._chosen(slot, one.bound, one.site)
                if chosen is None and (view is None or view == one.view):
                    view = one.view
                    plain.append((slot, one.bound, one.site))
                    continue
                if chosen is not None and not len(chosen):
                    continue
            elif (one := plan.latents.get(point)) is not None:
                chosen = self._chosen(slot, one.bound, one.site)
                rows = np.arange(slot.n) if chosen is None else chosen
                if len(rows):
                    selections.append(RowSelection(slot, one.bound, one.site, one.view, rows))
                continue
            result = self._acted(point, slot, acting, value, result, linear_input)
        if plain and view is not None:
            self._take_whole(point, view, value, plain)
        if selections:
            self._read_latents(value, selections)
        if self.backward is not None:  # last, as it may end the forward
            result = self._left(point, result, owner)
        self.hook_s += time.perf_counter() - start_s
        return result

    def _acted(
        self, point: Point, slot: RowSpan, acting: list[Acting], value: Any, result: Any, linear_input: Any
    ) -> Any:
        """The tensor after what one slot's hooks do to its rows."""
        rows = result[slot.batch, slot.start : slot.stop]
        source = None
        if any(one.bound.hook.edit is not None for one in acting):
            rows = self.ops.copy(rows)  # what is captured here must not see the write below
            source = None if linear_input is None else linear_input[slot.batch, slot.start : slot.stop]
        elif point.changes:
            rows = self.ops.copy(rows)
        edited = self._tap_rows(acting, slot, rows, source)
        if edited is rows:
            return result
        try:
            written = self.ops.copy(value) if not point.in_place and result is value else result
            written[slot.batch, slot.start : slot.stop] = edited
        except Exception as error:  # noqa: BLE001 - as in `_tap_rows`
            slot.error = as_error(error, acting[0].site)
            return result
        return written

    def _entered(self, point: Point, value: Any) -> Any:
        assert self.backward is not None
        for site, view in self.watching.get(point, ()):
            shown = view.of(value)
            entered = self.backward.enter(site, shown)
            if entered is shown:
                continue
            entered = view.put(value, entered, self.ops.copy)
            if point.in_place:
                value[...] = entered  # what else holds the tensor goes on with it too
            else:
                value = entered
        return value

    def _left(self, point: Point, value: Any, owner: RowSpan | None) -> Any:
        assert self.backward is not None
        for site, view in self.watching.get(point, ()):
            shown = view.of(value)
            left = self.backward.leave(site, shown, in_place=point.in_place, slot=owner)
            if left is not shown:
                value = view.put(value, left, self.ops.copy)
        return value

    def _take_whole(self, point: Point, view: View, value: Any, plain: list[tuple[RowSpan, BoundHook, Site]]) -> None:
        self.collector.add_whole(view.of(self.ops.copy(value) if point.changes else value), plain)

    def _read_latents(self, value: Any, selections: list[RowSelection]) -> None:
        for group in self.collector.together.groups(selections):
            try:
                self.collector.together.add(value, group)
            except Exception as error:  # noqa: BLE001 - as in `_tap_rows`; these asked for the same
                for selection in group:
                    selection.slot.error = as_error(error, selection.site)

    def tap_one(self, point: Point, slot: RowSpan, rows: Any) -> Any:
        """Like `tap`, for a site that a backend computes one sequence at a time."""
        self.reached[point] += 1
        if slot.error is not None or (acting := slot.plan.at.get(point)) is None:
            return rows
        self.ops.near(rows)
        rows = self._tap_rows(acting, slot, rows, None)
        if self.backward is None or slot.error is not None:
            return rows
        return self._left(point, rows, slot)

    def require_keys(self, point: Point, slot: RowSpan, scores: Any) -> None:
        """Fail the slot for a query ([row, head, key] scores) of which edits have left no key at all."""
        acting = slot.plan.at.get(point)
        if acting is not None and any(isinstance(one.bound.hook.edit, Replace) for one in acting):
            none = (self.ops.max_last(scores) == -np.inf).reshape(len(scores), -1).any(-1)
            self.collector.alarms.add(slot, slot.positions, none, no_key_left(acting[0].site))

    def fail_wanting(self, points: SequenceOf[Point], reason: str) -> None:
        """Fail the sequences that ask for points which turned out not to be readable."""
        for slot in self.wanting(*points):
            acting = next(slot.plan.at[point] for point in points if point in slot.plan.at)
            slot.error = slot.error or InvalidArgument(f"{acting[0].site}: {reason}")

    def _tap_rows(self, acting: list[Acting], slot: RowSpan, rows: Any, linear_input: Any) -> Any:
        """Read and edit one sequence's rows ([row, …]; attn_*: [row, head, key]); the same object when unchanged.

        When a hook fails, its slot is marked and the rows stay as they were.
        """
        raw = current = rows
        for one in acting:
            try:
                shown = one.view.of(current)
                if one.reads is not None:
                    found = self._evaluate(slot, one.bound, one.index, one.reads, shown)
                    slot.conditions[one.bound.index, one.index, one.reads] = found
                    continue
                if one.first:
                    raw = current
                edited = self._act(slot, one, raw, shown, linear_input)
                if edited is not shown:
                    current = one.view.put(current, edited, self.ops.copy)
            except Exception as error:  # noqa: BLE001 - a fault in one request's hook must not reach its neighbours
                slot.error = as_error(error, one.site)
                return rows
        if self.backward is not None:
            self._keep_encoded(acting, slot, current)
        return current

    def _keep_encoded(self, acting: list[Acting], slot: RowSpan, rows: Any) -> None:
        """Where gradients by latents are asked for: the rows after all edits, to be encoded then."""
        for one in acting:
            capture = one.bound.hook.capture
            if capture is not None and capture.gradient and isinstance(capture.reduce, ReadLatents):
                slot.encoded[one.bound.index, one.index] = self.ops.stop(one.view.of(rows))

    def _act(self, slot: RowSpan, one: Acting, raw: Any, shown: Any, linear_input: Any) -> Any:
        """One hook at one site: what it shows after the hook's edit."""
        bound, index, site = one.bound, one.index, one.site
        chosen = self._chosen(slot, bound, site)
        mask = self._condition(slot, bound, index, site, shown)
        if chosen is not None and not len(chosen):
            return shown
        if bound.gate is not None and not bound.gate.decided:
            return shown
        capture, edited = bound.hook.capture, shown
        if bound.hook.edit is not None:
            edited = self._edit(slot, bound, index, site, shown, chosen, mask, linear_input)
        if capture is not None and not capture.gradient:
            value = one.view.of(raw) if capture.before else edited
            self.collector.add(slot, bound, index, site, value, chosen, mask)
        return edited

    def _chosen(self, slot: RowSpan, bound: BoundHook, site: Site) -> NDArray[np.int64] | None:
        """Row numbers within the slot that the hook applies to; None for all of them."""
        key = (bound.index, "logits" if site.name == "logits" else "")
        if key not in slot.choices:
            mask = choose(bound, slot.plan, site, slot.positions, slot.tokens)
            slot.choices[key] = None if mask.all() else np.flatnonzero(mask)
        return slot.choices[key]

    def _edit(
        self,
        slot: RowSpan,
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
        if tuple(new.shape) != tuple(old.shape):  # it would be spread over the rows, or not fit them
            raise InvalidArgument(f"a hook at {site} gives {list(new.shape)} for rows of {list(old.shape)}")
        if site.name in ATTENTION_SITES:
            masked = slot.masked if picked is None else ops.take(slot.masked, picked, 0)
            if site.name == "attn_scores" and not isinstance(bound.hook.edit, Replace):
                masked = masked | (old == -np.inf)  # so is a key that an earlier hook took out
            new = ops.where(masked, old, new)  # edits never reach masked keys: scores stay −inf, probabilities 0
        if mask is not None:
            mask = mask if picked is None else ops.take(mask, picked, 0)
            new = ops.where(mask.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
        if bound.strength != 1.0:  # between the two; of −∞ there is no part
            new = ops.where(new == old, old, old + (new - old) * bound.strength)
        return new if picked is None else ops.put(rows, picked, 0, new)

    def _condition(self, slot: RowSpan, bound: BoundHook, index: int, site: Site, rows: Any) -> Any:
        """Boolean row mask of a hook's conditions, or None when it has none."""
        mask, either = None, isinstance(bound.hook.where.when, AnyOf)
        for number, read in enumerate(bound.condition_sites(site)):
            if read == site:
                found = self._evaluate(slot, bound, index, number, rows)
            elif (found := slot.conditions.get((bound.index, index, number))) is None:
                raise Internal(f"condition {number} of hook {bound.index} was not evaluated before {site}")
            else:
                found = self.ops.beside(found, rows)
            mask = found if mask is None else mask | found if either else mask & found
        return mask

    def _evaluate(self, slot: RowSpan, bound: BoundHook, index: int, number: int, rows: Any) -> Any:
        when = bound.conditions[number]
        coordinate = self.edits.coordinate(bound, number, rows)
        if tuple(coordinate.shape) != (len(rows),):  # as a mask it would be spread over rows, or not fit them
            raise Internal(f"a condition gives {list(coordinate.shape)} for {len(rows)} rows")
        if when.latch is not None:
            coordinate = self._latched(slot, bound, (index, number), coordinate)
        compare = {"gt": "__gt__", "ge": "__ge__", "lt": "__lt__", "le": "__le__"}[when.op]
        return getattr(coordinate, compare)(when.threshold)

    def _latched(self, slot: RowSpan, bound: BoundHook, index: tuple[int, int], coordinate: Any) -> Any:
        """The prompt's one coordinate, for every row; prompt rows seen in this forward are taken in first."""
        when = bound.conditions[index[1]]
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

    def add_gradient(self, site: Site, slot: RowSpan, rows: Any) -> None:
        """Collect the gradient of a slot's rows at a site, for the hooks that ask for it."""
        self.ops.near(rows)
        for bound, index in slot.plan.by_site.get(site, ()):
            if bound.hook.capture is not None and bound.hook.capture.gradient:
                chosen = self._chosen(slot, bound, site)
                if chosen is not None and not len(chosen):
                    continue
                encoded = slot.encoded.get((bound.index, index))
                try:
                    self.collector.add(slot, bound, index, site, rows, chosen, None, encoded=encoded)
                except Exception as error:  # noqa: BLE001 - as in `tap`
                    slot.error = slot.error or as_error(error, site)

    def collect(self) -> dict[int, list[Rows]]:
        """End the forward: every captured row on the host, by id of the slot's sequence."""
        self._check_raw()
        rows = self.collector.finish()
        self.end()
        out: dict[int, list[Rows]] = {}
        for slot, found in rows.items():
            out.setdefault(id(slot.sequence), []).extend(found)
        return out

    def end(self) -> None:
        """Let go of what the forward made: an idle model keeps nobody's tensors on its device."""
        self.deltas.end()
        self.terms.clear()
        self.slots, self.collector, self.watching = [], Collector(self.ops), {}

    def _check_raw(self) -> None:
        """Fail the sequences whose raw module did not run once: what they asked for would be missing, or twice."""
        for slot in self.slots:
            for point, acting in slot.plan.at.items():
                if slot.error is None and self.reached[point] != 1 and acting[0].site.name == "module":
                    times = f"ran {self.reached[point]} times" if self.reached[point] else "did not run"
                    slot.error = InvalidArgument(
                        f"{acting[0].site}: the module {times} in a forward; ask for one that runs once"
                    )
