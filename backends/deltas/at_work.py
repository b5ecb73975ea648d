"""What variants add to weights, for every sequence in a forward at once: which rows, and by which factors.

A delta is below every tap: inside the linear module, y + scale · ((x·A)·B + bias), for the rows whose sequence asks for
it. Rows of other sequences are not touched. The base's weights are never written to.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence as SequenceOf
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import Internal
from ...protos.spec import Where
from ..hooks.bound import chosen_by
from .factors import UNEMBED, BoundUse, BoundVariant
from .placed import NOTHING, Part, Placed, Products, Rows

if TYPE_CHECKING:
    from ..hooks.row_span import RowSpan

__all__ = ["Deltas"]


class Deltas:
    """The deltas at work on one model; used by the thread that owns it."""

    def __init__(self, products: Products | None = None, *, most_bytes: int = 0) -> None:
        self.products = products
        self.most_bytes = most_bytes
        """Of factors, counted in float32, that are kept on the device beside those at work."""
        self._now = NOTHING
        self._head: Placed | None = None
        self._alike: tuple[Hashable, Placed] = (None, self._now)
        self._ready: dict[str, dict[str, Any]] = {}
        """Hash → module path → factors on the device, the latest used last."""
        self._source: Any = None
        self._held: dict[str, list[Any]] = {}
        """What was read of it for modules that are still to come."""
        self._beside: dict[str, tuple[str, ...]] = {}
        """Module → it and those that read the same input after it: q, k and v. Looked at once, so that all forwards are alike."""
        self._looking: list[tuple[str, Any]] | None = None
        self._nbytes: dict[str, int] = {}

    @property
    def active(self) -> bool:
        """Whether some row of this forward runs with a variant."""
        return bool(self._now.parts) or self._looking is not None

    @contextmanager
    def look(self) -> Generator[None]:
        """Inside, one forward shows which modules read one input."""
        self._looking = []
        try:
            yield
            for i, (path, source) in enumerate(self._looking):
                self._beside[path] = (path, *(other for other, read in self._looking[i + 1 :] if read is source))
        finally:
            self._looking = None

    def place(self, slots: SequenceOf[RowSpan], layout: tuple[int, int]) -> None:
        """The rows of a forward over [batch, row, …] tensors, of sequences with variants and without."""
        self._head, self._source, self._held = None, None, {}
        if not any(slot.plan.uses for slot in slots):
            self._now = NOTHING
            return
        found = list(_ranges((slot, slot.batch * layout[1] + slot.start, slot.positions) for slot in slots))
        self._now = self._placed(found, layout[0] * layout[1])

    @contextmanager
    def head(self, rows: Iterable[tuple[RowSpan, SequenceOf[int] | NDArray[np.int64]]]) -> Generator[None]:
        """Inside, the output head reads one row after another of these slots, at these positions."""
        before = self._head
        self.place_head(rows)
        try:
            yield
        finally:
            self._head = before

    @contextmanager
    def whole_head(self) -> Generator[None]:
        """Inside, the output head reads the forward's own rows, all of them."""
        self._head = self._now
        try:
            yield
        finally:
            self._head = None

    def place_head(self, rows: Iterable[tuple[RowSpan, SequenceOf[int] | NDArray[np.int64]]]) -> None:
        """As `head`, until the next forward begins."""
        found: list[tuple[RowSpan, int, NDArray[np.int64]]] = []
        start = 0
        for slot, positions in rows:
            found.append((slot, start, np.asarray(positions, dtype=np.int64)))
            start += len(found[-1][2])
        self._head = NOTHING
        if any(slot.plan.uses for slot, _, _ in found):
            self._head = self._placed(list(_ranges(found)), start)

    def _placed(self, found: list[tuple[BoundUse, Rows]], n_rows: int) -> Placed:
        rows: dict[tuple[str, float], list[Rows]] = {}
        variants: dict[tuple[str, float], BoundVariant] = {}
        for use, own in found:
            rows.setdefault(use.key, []).append(own)
            variants[use.key] = use.variant
        joined = {key: np.concatenate(own) for key, own in rows.items()}
        alike = (n_rows, tuple((key, own.tobytes()) for key, own in joined.items()))
        if self._alike[0] != alike:  # step after step of a generation has the same rows
            parts = (
                Part(variants[key], key[1], None if len(once) == n_rows else once)
                for key, own in joined.items()
                if key[1] != 0.0
                for once in _each_once(own)
            )
            self._alike = (alike, Placed(tuple(parts), n_rows))
        return self._alike[1]

    def touches(self, path: str) -> bool:
        """Whether this forward changes a module."""
        return self._now.changes(path)

    def added(self, path: str, x: Any, y: Any, *, source: Any = None, columns: Any = None) -> Any:
        """What a module gives, [n, d_out] of rows [n, d_in] (token ids [n] of the embedding), with this forward's deltas.

        `source`: the tensor that the module was given, which is the same one for modules that read the same rows. `columns`:
        those that y has, where the head gives some of its logits only.
        """
        if self._looking is not None:
            self._looking.append((path, source))
            return y
        placed = self._now
        if path == UNEMBED:
            if self._head is None:
                if not placed.changes(path):
                    return y
                raise Internal("the output head was read without saying whose rows it reads")
            placed = self._head
        if not placed.parts:
            return y
        assert self.products is not None
        steps = placed.steps(path, self.products, self._factors, y)
        if not steps:
            return y
        for step, h in zip(steps, self._read(placed, path, x, y, source), strict=True):
            y = self.products.write(y, h, step.made if columns is None else self.products.columns(step.made, columns))
        return y

    def _read(self, placed: Placed, path: str, x: Any, y: Any, source: Any) -> list[Any]:
        """x·A of each step of a module, and for modules that read the same input after it."""
        assert self.products is not None
        if source is not None and source is self._source and path in self._held:
            return self._held.pop(path)
        self._source = source
        paths = self._beside.get(path, (path,)) if source is not None else (path,)
        found: dict[str, list[Any]] = {
            one: [None] * len(placed.steps(one, self.products, self._factors, y)) for one in paths
        }
        for reading in placed.readings(paths, self.products):
            h = self.products.read(x, reading.made)
            for whose, index, columns in reading.whose:
                found[whose][index] = h if len(reading.whose) == 1 else h[:, columns]
        own = found.pop(path)
        self._held = found
        return own

    def _factors(self, part: Part, path: str, near: Any) -> Any:
        assert self.products is not None
        ready = self._ready.setdefault(part.variant.hash, {})
        if path not in ready:
            factors = part.variant.factors[path]
            ready[path] = self.products.prepare(factors, near)
            self._nbytes[part.variant.hash] = self._nbytes.get(part.variant.hash, 0) + factors.nbytes
        return ready[path]

    def _let_go(self) -> None:
        """Drop the device's copies of the variants used longest ago, down to the bound; those at work stay."""
        used = {part.variant.hash for part in self._now.parts}
        for key in used & self._ready.keys():
            self._ready[key] = self._ready.pop(key)
        for key in list(self._ready):
            if sum(self._nbytes.values()) <= self.most_bytes:
                return
            if key not in used:
                del self._ready[key], self._nbytes[key]

    def end(self) -> None:
        """No forward is under way."""
        if self._now.parts:
            self._let_go()
        self._now, self._head = NOTHING, None
        self._source, self._held = None, {}


def _each_once(rows: Rows) -> Iterator[Rows]:
    """Ascending rows, in as many groups as one of them occurs: a sequence may use a variant twice."""
    while len(rows):
        once, first = np.unique(rows, return_index=True)
        yield once
        rows = np.delete(rows, first)


def _ranges(slots: Iterable[tuple[RowSpan, int, NDArray[np.int64]]]) -> Iterator[tuple[BoundUse, Rows]]:
    """Each use with the flat rows that it acts on: of (slot, its first flat row, its rows' positions)."""
    for slot, start, positions in slots:
        plan = slot.plan
        for use in plan.uses:
            rows = np.arange(start, start + len(positions))
            if use.where != _EVERYWHERE:
                tokens = slot.tokens if slot.tokens is None else slot.tokens[positions - slot.position]
                rows = rows[chosen_by(use.where, plan, positions, tokens)]
            if use.gate is None or (len(rows) and use.gate.decided):
                yield use, rows


_EVERYWHERE = Where()
