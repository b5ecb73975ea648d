"""Latents that several sequences read at one site with one SAE: encoded together, parted on the host.

One product with the encoder's weights serves a whole batch; one a sequence would read them from memory once each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...protos.latents import ReadLatents
from ...protos.sites import Site
from ...protos.tensors import Array
from ..ops import Ops
from ..saes.latent_maths import LatentMaths
from .alarms import Alarms, beyond
from .bound import BoundHook
from .edits import tensors_of
from .points import View
from .sequence import Rows

if TYPE_CHECKING:
    from .row_span import RowSpan

__all__ = ["LatentReads", "RowSelection"]


@dataclass(frozen=True, slots=True, eq=False)
class RowSelection:
    """One sequence's rows, of all that are encoded together."""

    slot: RowSpan
    bound: BoundHook
    site: Site
    view: View
    rows: NDArray[np.int64]
    """Row numbers within the slot."""


@dataclass(eq=False, slots=True)
class _Read:
    selections: list[tuple[RowSelection, int]]
    """And where its rows begin among those read."""
    parts: dict[str, Any]


class LatentReads:
    """Of one forward."""

    def __init__(self, ops: Ops, alarms: Alarms) -> None:
        self.ops, self.alarms = ops, alarms
        self.maths = LatentMaths(ops)
        self.reads: list[_Read] = []

    @staticmethod
    def groups(selections: SequenceOf[RowSelection]) -> list[list[RowSelection]]:
        """Those that ask for the same."""
        groups: dict[tuple[Any, ...], list[RowSelection]] = {}
        for selection in selections:
            capture = selection.bound.hook.capture
            assert capture is not None
            assert isinstance(capture.reduce, ReadLatents)
            sae = selection.bound.saes[capture.reduce.sae]
            groups.setdefault((id(sae), capture.reduce, capture.dtype, selection.view), []).append(selection)
        return list(groups.values())

    def add(self, value: Any, selections: SequenceOf[RowSelection]) -> None:
        """Read latents of rows of the tensor at a point, [batch, row, …], for one group."""
        capture = selections[0].bound.hook.capture
        assert capture is not None
        assert isinstance(capture.reduce, ReadLatents)
        reduce, dtype = capture.reduce, capture.dtype
        value = selections[0].view.of(value)
        width = int(value.shape[1])
        chosen = [selection.slot.batch * width + selection.slot.start + selection.rows for selection in selections]
        at = np.concatenate(chosen)
        flat = value.reshape(-1, *value.shape[2:])
        rows = flat if len(at) == flat.shape[0] and (at == np.arange(len(at))).all() else self._taken(flat, at)
        parts = self.maths.read(reduce, tensors_of(self.ops, selections[0].bound)["saes"][reduce.sae], rows)
        cast = {part: tensor if dtype is None else self.ops.cast(tensor, dtype) for part, tensor in parts}
        starts = np.cumsum([0, *(len(rows) for rows in chosen)]).tolist()
        if dtype is not None:
            self._watch(dict(parts), cast, dtype, list(zip(selections, starts, strict=False)))
        self.reads.append(_Read(list(zip(selections, starts, strict=False)), cast))

    def _watch(
        self, parts: dict[str, Any], cast: dict[str, Any], dtype: str, selections: list[tuple[RowSelection, int]]
    ) -> None:
        for name, tensor in parts.items():
            wrong = self.ops.lost(tensor, cast[name])
            for selection, start in selections:
                own, positions = wrong[start : start + len(selection.rows)], selection.slot.position + selection.rows
                self.alarms.add(selection.slot, positions, own, beyond(selection.site, dtype))

    def _taken(self, flat: Any, at: NDArray[np.int64]) -> Any:
        return self.ops.take(flat, self.ops.index(at), 0)

    def part(self, slots: Collection[RowSpan]) -> LatentReads:
        """What some sequences read, and nothing of the others."""
        part = LatentReads(self.ops, self.alarms)
        for read in self.reads:
            if kept := [(selection, start) for selection, start in read.selections if selection.slot in slots]:
                part.reads.append(_Read(kept, read.parts))
        return part

    def device_tensors(self) -> list[Any]:
        """Everything that `finish` will take of the host's arrays, in its order."""
        return [tensor for read in self.reads for tensor in read.parts.values()]

    def finish(self, host: Iterator[Array]) -> dict[RowSpan, list[Rows]]:
        """Each sequence's rows, [site, row, …]."""
        out: dict[RowSpan, list[Rows]] = {}
        for read in self.reads:
            for part in read.parts:
                array = next(host)
                for selection, start in read.selections:
                    values = array[None, start : start + len(selection.rows)]
                    positions = tuple((selection.slot.position + selection.rows).tolist())
                    rows = Rows(selection.bound.index, (str(selection.site),), positions, values, part)
                    out.setdefault(selection.slot, []).append(rows)
        return out
