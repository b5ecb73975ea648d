"""Collects what a forward's captures ask for, and brings it to the host in one copy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...protos.latents import ReadLatents
from ...protos.sites import ATTENTION_SITES, Site
from ...protos.spec import Capture, Gather, Last, Mean, NextLogprob, Norm, Project, Reduction, TopK
from ...protos.tensors import Array, numpy_dtype
from ..distributions import next_log_probability
from ..ops import Ops
from ..saes.latent_maths import LatentMaths
from .alarms import Alarms, beyond
from .bound import BoundHook, BoundPlan
from .edits import tensors_of
from .errors import as_error
from .latent_reads import LatentReads
from .sequence import Rows

if TYPE_CHECKING:
    from .row_span import RowSpan

__all__ = ["Collector", "flush_reductions"]


@dataclass(eq=False, slots=True)
class _Entry:
    slot: RowSpan
    bound: BoundHook
    index: int
    site: Site
    positions: NDArray[np.int64]
    parts: dict[str, Any]
    """Part name → device tensor [row, …]."""
    mask: Any
    """Row condition, decided on the device."""


_Alike = tuple["RowSpan", int, str, tuple[int, ...], tuple[int, ...]]
"""Rows that can be one tensor: of one sequence, hook, part, positions and shape."""


@dataclass(eq=False, slots=True)
class _Whole:
    """Tensors of one shape and dtype, a site each, that the same sequences take their rows of."""

    sites: list[dict[RowSpan, Site]] = field(default_factory=list["dict[RowSpan, Site]"])
    """What each sequence calls each of them."""
    values: list[Any] = field(default_factory=list[Any])
    stacked: Any = None

    def tensor(self, ops: Ops) -> Any:
        """All of them as one device tensor, made once."""
        if self.stacked is None:
            self.stacked, self.values = ops.stack(self.values), []
        return self.stacked


@dataclass(eq=False, slots=True)
class _Accumulated:
    """A `last` or `mean` under way, on the host."""

    total: Array | None = None
    count: int = 0
    position: int = -1


class Collector:
    """Device tensors captured in one forward."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.latents = LatentMaths(ops)
        self.alarms = Alarms()
        self.together = LatentReads(ops, self.alarms)
        self.entries: list[_Entry] = []
        self.whole: dict[tuple[Any, ...], _Whole] = {}
        """By (selections, shape, dtype, device); of a part also by its number."""

    def add_whole(self, value: Any, selections: list[tuple[RowSpan, BoundHook, Site]]) -> None:
        """Take all rows of several sequences at once; they are parted on the host."""
        who = tuple((slot, bound) for slot, bound, _ in selections)
        whole = self.whole.setdefault((who, tuple(value.shape), value.dtype, self.ops.here), _Whole())
        whole.sites.append({slot: site for slot, _, site in selections})
        whole.values.append(value)

    def part(self, slots: Collection[RowSpan]) -> Collector:
        """What some sequences captured, and nothing of the others."""
        part = Collector(self.ops)
        part.alarms = self.alarms.part(slots)
        part.entries = [entry for entry in self.entries if entry.slot in slots]
        part.together = self.together.part(slots)
        for (selections, *kind), whole in self.whole.items():
            if kept := tuple(selection for selection in selections if selection[0] in slots):
                # Groups that differed in who left alone are alike now, and each has sites of its own.
                part.whole[kept, *kind, len(part.whole)] = whole
        return part

    def add(
        self,
        slot: RowSpan,
        bound: BoundHook,
        index: int,
        site: Site,
        rows: Any,
        chosen: NDArray[np.int64] | None,
        mask: Any,
        *,
        encoded: Any = None,
    ) -> None:
        """Take the chosen rows of a site's value; nothing leaves the device yet.

        `encoded`: where `rows` are a gradient by which an SAE's latents are asked for, the values themselves.
        """
        ops, capture = self.ops, bound.hook.capture
        assert capture is not None
        if isinstance(capture.reduce, NextLogprob):
            self._next_logprob(slot, bound, index, site, rows, chosen, mask)
            return
        positions = slot.positions
        if chosen is not None:
            picked = ops.index(chosen)
            rows, positions = ops.take(rows, picked, 0), positions[chosen]
            mask = None if mask is None else ops.take(mask, picked, 0)
            encoded = None if encoded is None else ops.take(encoded, picked, 0)
        reduced = self._reduce(capture.reduce, rows, bound, encoded)
        self._enter(slot, bound, index, site, positions, {_part(capture, name): part for name, part in reduced}, mask)

    def _enter(
        self,
        slot: RowSpan,
        bound: BoundHook,
        index: int,
        site: Site,
        positions: NDArray[np.int64],
        parts: dict[str, Any],
        mask: Any,
    ) -> None:
        """Take parts in the dtype that was asked for; a number that it does not hold fails the slot."""
        ops, capture = self.ops, bound.hook.capture
        assert capture is not None
        if capture.dtype is not None:
            cast = {name: ops.cast(part, capture.dtype) for name, part in parts.items()}
            at = positions[-1:] if isinstance(capture.reduce, Last) and mask is None else positions
            for name, part in parts.items():
                wrong = ops.lost(part, cast[name])
                self.alarms.add(slot, at, wrong if mask is None else wrong & mask, beyond(site, capture.dtype))
            if not isinstance(capture.reduce, Mean):  # which is cast once it is made
                parts = cast
        self.entries.append(_Entry(slot, bound, index, site, positions, parts, mask))

    def _reduce(self, reduce: Reduction | None, rows: Any, bound: BoundHook, encoded: Any) -> list[tuple[str, Any]]:
        ops = self.ops
        if reduce is None:
            return [("", rows)]
        if isinstance(reduce, Last):
            return [("", rows[-1:] if bound.hook.where.when is None else rows)]
        if isinstance(reduce, ReadLatents):
            on = tensors_of(ops, bound)["saes"][reduce.sae]
            read = self.latents.read
            return read(reduce, on, rows) if encoded is None else self.latents.read_gradient(reduce, on, encoded, rows)
        rows = ops.f32(rows)
        if isinstance(reduce, Norm):
            return [("", ops.norm(rows)[..., 0])]
        if isinstance(reduce, TopK):
            values, index = ops.top_k(rows, reduce.k)
            return [("value", values), ("index", index)]
        if isinstance(reduce, Project):
            directions = ops.like(ops.device(np.atleast_2d(reduce.directions.floats())), rows)
            return [("", rows @ ops.transpose_last(directions))]
        if isinstance(reduce, Gather):
            return [("", ops.take(rows, ops.index(np.array(reduce.ids)), -1))]
        return [("", rows)]  # mean: summed on the host

    def _next_logprob(
        self,
        slot: RowSpan,
        bound: BoundHook,
        index: int,
        site: Site,
        rows: Any,
        chosen: NDArray[np.int64] | None,
        mask: Any,
    ) -> None:
        """Rows whose following token is already known; a sampled row's comes from the sampler (`sampled_logprob`)."""
        ops, tokens = self.ops, slot.sequence.tokens
        local = np.arange(slot.n) if chosen is None else chosen
        local = local[slot.position + local + 1 < len(tokens)]
        if not len(local):
            return
        picked = ops.index(local)
        taken, following = ops.take(rows, picked, 0), np.array([tokens[slot.position + int(i) + 1] for i in local])
        capture = bound.hook.capture
        assert capture is not None
        assert isinstance(capture.reduce, NextLogprob)
        found = next_log_probability(ops, taken, following, capture.reduce.top)
        if capture.dtype is None:
            found[:2] = [ops.like(part, ops.f32(taken[:1])) for part in found[:2]]
        parts: dict[str, Any] = dict(zip(("", "value", "index"), found, strict=False))
        mask = None if mask is None else ops.take(mask, picked, 0)
        self._enter(slot, bound, index, site, slot.positions[local], parts, mask)

    def device_tensors(self) -> list[Any]:
        """Everything that `finish` will move, for backends that schedule lazily."""
        entries = [t for e in self.entries for t in (*e.parts.values(), *(() if e.mask is None else (e.mask,)))]
        whole = [whole.tensor(self.ops) for whole in self.whole.values()]
        return [*whole, *self.together.device_tensors(), *entries, *self.alarms.device_tensors()]

    def finish(self) -> dict[RowSpan, list[Rows]]:
        """Move everything to the host; rows of the same hook, positions and shape are stacked over sites."""
        host = iter(self.ops.to_host(self.device_tensors()))
        out = self._parted(host)
        for slot, rows in self.together.finish(host).items():
            out.setdefault(slot, []).extend(rows)
        grouped: dict[_Alike, list[tuple[_Entry, Array]]] = {}
        for entry in self.entries:
            arrays = {name: next(host) for name in entry.parts}
            keep = None if entry.mask is None else next(host).astype(bool)
            try:
                for part, array in arrays.items():
                    positions = entry.positions
                    if keep is not None:
                        array, positions = array[keep], positions[keep]
                    if _accumulate(entry, array, positions) or not len(positions):
                        continue
                    key = (entry.slot, entry.bound.index, part, tuple(positions.tolist()), array.shape)
                    grouped.setdefault(key, []).append((entry, array))
            except Exception as error:  # noqa: BLE001 - a fault in one request's hook must not reach its neighbours
                entry.slot.error = entry.slot.error or as_error(error, entry.site)
        self.alarms.finish(host)
        for slot, rows in self._stacked(grouped).items():
            out.setdefault(slot, []).extend(rows)
        return out

    def _parted(self, host: Iterator[Array]) -> dict[RowSpan, list[Rows]]:
        out: dict[RowSpan, list[Rows]] = {}
        for (selections, *_), whole in self.whole.items():
            stacked = next(host)
            for slot, bound in selections:
                sites = tuple(str(names[slot]) for names in whole.sites)
                positions = tuple(range(slot.position, slot.position + slot.n))
                values = stacked[:, slot.batch, slot.start : slot.stop]
                out.setdefault(slot, []).append(Rows(bound.index, sites, positions, values))
        return out

    def _stacked(self, grouped: dict[_Alike, list[tuple[_Entry, Array]]]) -> dict[RowSpan, list[Rows]]:
        out: dict[RowSpan, list[Rows]] = {}
        for (slot, hook, part, positions, _), found in grouped.items():
            values = np.stack([array for _, array in found]) if len(found) > 1 else found[0][1][None]
            if found[0][0].site.name in ATTENTION_SITES:
                values = np.swapaxes(values, 1, 2)  # [site, row, head, key] → [site, head, row, key]
            sites = tuple(str(entry.site) for entry, _ in found)
            out.setdefault(slot, []).append(Rows(hook, sites, positions, values, part))
        return out


def _part(capture: Capture, name: str) -> str:
    """What a tensor is called beside the others of its hook."""
    return "_".join(filter(None, ("gradient", name))) if capture.gradient else name


def _accumulate(entry: _Entry, array: Array, positions: NDArray[np.int64]) -> bool:
    """Take rows into a `last` or `mean`; False for captures that are sent as they come."""
    capture = entry.bound.hook.capture
    assert capture is not None
    if not isinstance(capture.reduce, (Last, Mean)) or not len(positions):
        return isinstance(capture.reduce, (Last, Mean))
    state = _state(entry.slot.plan)
    found = state.setdefault((entry.bound.index, entry.index), _Accumulated())
    found.position = int(positions[-1])
    if isinstance(capture.reduce, Last):
        found.total = array[-1].copy()
    else:
        total = array.astype(np.float64).sum(axis=0)
        found.total = total if found.total is None else found.total + total
    found.count += len(positions)
    return True


def _state(plan: BoundPlan) -> dict[tuple[int, int], _Accumulated]:
    if plan.owner is None:
        plan.owner = dict[tuple[int, int], _Accumulated]()
    return plan.owner


def flush_reductions(plan: BoundPlan) -> list[Rows]:
    """The `last` and `mean` captures of a sequence that ends; [site, …] with the row axis kept at length 1."""
    state, out = _state(plan), list[Rows]()
    for bound in plan.hooks:
        capture = bound.hook.capture
        if capture is None or not isinstance(capture.reduce, (Last, Mean)):
            continue
        for i, site in enumerate(bound.sites):
            found = state.get((bound.index, i))
            if found is None or found.total is None:
                continue
            value = found.total
            if isinstance(capture.reduce, Mean):
                value = (value / found.count).astype(numpy_dtype(capture.dtype or "float32"))
            positions = (found.position,) if isinstance(capture.reduce, Last) else ()
            out.append(Rows(bound.index, (str(site),), positions, value[None, None], _part(capture, "")))
    state.clear()
    return out
