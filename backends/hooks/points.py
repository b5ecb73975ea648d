"""Where in the forward each site's tensor is: one point for each tensor, however many names it has.

A site, raw or named, is a view of the tensor at a point: a module's input or output. What acts at one point, under
whatever names, of whatever sequences, acts there together and in plan order; so no edit can be lost in a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from ..model.sites import ATTENTION_TAPS, Family, Tap, Term

__all__ = ["PROBE_LENGTHS", "WHOLE", "Point", "Points", "Seen", "Side", "Spot", "View"]

Side = Literal["input", "output"]

PROBE_LENGTHS = (37, 41)
"""Rows of the two forwards that show what shapes modules see: no other axis has both, and they are enough for
mixtures of experts to sort their rows."""
PROBE_BATCH = 2


@dataclass(eq=False, slots=True)
class Seen:
    """What two forwards showed of a module's input or output."""

    calls: list[int]
    """Of the module, in each forward."""
    shapes: list[tuple[int, ...]]
    """Of the tensor, in each; () where it is none."""
    changes: bool = False
    """Something after the module writes into the tensor that it gave."""

    @property
    def reason_to_refuse(self) -> str:
        """Why its rows cannot be matched to tokens, or empty."""
        if self.calls != [1, 1]:
            times = next(n for n in self.calls if n != 1)
            return f"the forward pass calls this module {times} times, not once"
        matched = all(
            len(shape) >= 3 and shape[:2] == (PROBE_BATCH, length)
            for shape, length in zip(self.shapes, PROBE_LENGTHS, strict=True)
        )
        if not matched or self.shapes[0][2:] != self.shapes[1][2:]:
            return "its tensor has no rows that can be matched to tokens"
        return ""


@dataclass(eq=False, frozen=True, slots=True)
class Point:
    """One tensor of the forward. There is one object for each, so points are compared as objects."""

    path: str
    """Of the module; of attention's insides and the logits, what they are called."""
    side: str
    kind: Literal["", "stream", "term"] = ""
    """stream: the residual branch holds the tensor too, and an edit must reach it there: it is written in place.
    term: it is no tensor of the module's but what was added to a stream to make that."""
    linear: bool = False
    """A plain linear module computes it."""
    changes: bool = False
    """The tensor is written to later in the forward: what is kept of it must be a copy."""
    flat: bool = False
    """Its rows stand one behind the other, [batch · row, …]."""
    term: Term | None = None
    """Of a term: its parts, by whole paths."""

    @property
    def in_place(self) -> bool:
        """Whether edits are written into the tensor itself."""
        return self.kind == "stream"

    def __repr__(self) -> str:
        return f"<{self.path}:{self.side}{self.kind and ' ' + self.kind}>"


@dataclass(frozen=True, slots=True)
class View:
    """How a site sees the tensor at its point. For tensors [batch, row, …] and rows [row, …] alike."""

    heads: int = 0
    """The last axis is this many heads."""
    part: tuple[int, int] | None = None
    """(i, n): the i-th of n equal slices of the last axis."""
    scale: float = 1.0
    """The site is so many times the tensor."""

    @property
    def whole(self) -> bool:
        """Whether the site is the tensor as it is."""
        return self == WHOLE

    def of(self, value: Any) -> Any:
        """What the site shows of a tensor."""
        if self.scale != 1.0:
            return value * self.scale
        if self.heads:
            return value.reshape(*value.shape[:-1], self.heads, -1)
        if self.part is not None:
            start, stop = self._slice(value)
            return value[..., start:stop]
        return value

    def put(self, value: Any, new: Any, copy: Any) -> Any:
        """The tensor with what the site shows of it replaced. `copy` copies a tensor."""
        if self.scale != 1.0:
            return new / self.scale
        if self.heads:
            return new.reshape(value.shape)
        if self.part is not None:
            start, stop = self._slice(value)
            value = copy(value)
            value[..., start:stop] = new
            return value
        return new

    def _slice(self, value: Any) -> tuple[int, int]:
        assert self.part is not None
        index, n = self.part
        width = value.shape[-1] // n
        return index * width, (index + 1) * width


WHOLE = View()
_NOWHERE = Point("", "")


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a site is."""

    point: Point
    view: View = WHOLE


class Points:
    """The points of one model on one backend. Made at load, read by any thread."""

    def __init__(
        self,
        family: Family | None,
        backend: str,
        n_heads: int,
        seen: Mapping[tuple[str, str], Seen],
        *,
        changeable: bool = False,
        fault: str = "",
    ) -> None:
        """`seen`: what forwards showed, by (path, side). `changeable`: any tensor may be written to later.
        `fault`: why no forward could be looked at."""
        self.family, self.backend, self.n_heads, self.seen = family, backend, n_heads, seen
        self._changeable, self._fault = changeable, fault
        self._points: dict[tuple[str, str, str], Point] = {}
        self._spots: dict[Site, Spot] = {}
        self.run_only: dict[tuple[str, str], str] = {}
        """Raw (path, side) whose rows do not come while generating as they do in a run, with the reason."""
        self.logits = self.spot(Site("logits")).point

    def spot(self, site: Site) -> Spot:
        """Where a site is. Raises InvalidArgument for a raw one that is nowhere, or whose rows are not the tokens'."""
        found = self._spots.get(site)
        if found is None:
            found = self._spots[site] = self._raw(site) if site.name == "module" else self._named(site)
        return found

    def attention(self, layer: int) -> dict[str, Point]:
        """The points inside a layer's attention; none where no family says what they are."""
        nowhere: dict[str, Point] = dict.fromkeys((*ATTENTION_TAPS, "z"), _NOWHERE)
        if self.family is None or not self.family.heads or not self.family.has("q", layer):
            return nowhere
        inside = {name: self.spot(Site(name, layer)).point for name in ATTENTION_TAPS}
        if "z" in self.family.taps and self.family.has("z", layer):
            tap = self.family.tap("z", layer)
            inside |= {"z": self.spot(Site("z", layer)).point} if tap.side == "attention" else {}
        return {**nowhere, **inside}

    def tail(self, site: Site) -> tuple[int, ...]:
        """Sizes of a raw site's axes after the row axis. Raises as `spot` does."""
        point = self.spot(site).point
        if point.flat:
            return self.seen[point.path, "output"].shapes[0][1:]
        return self.seen[point.path, point.side].shapes[0][2:]

    def read_width(self, site: Site) -> int:
        """How wide the rows are that the module reads whose output a site is; 0 where that is not known."""
        point = self.spot(site).point
        seen = self.seen.get((point.path, "input"))
        return seen.shapes[0][-1] if seen is not None and seen.shapes[0] else 0

    @cached_property
    def paths(self) -> frozenset[str]:
        """Every module's."""
        return frozenset(path for path, _ in self.seen)

    def _named(self, site: Site) -> Spot:
        if site.name == "logits":
            return Spot(self._point("logits", "", ""))
        assert self.family is not None
        if site.name in ATTENTION_TAPS:
            path = f"{self.family.layer_path(self.backend, site.layer or 0)}.{self.family.attention}"
            return Spot(self._point(path, site.name, ""))
        path, tap = self._tap(site)
        if tap.term is not None:
            assert site.layer is not None
            term = tap.term.below(self.family.layer_path(self.backend, site.layer))
            return Spot(self._points.setdefault((path, tap.side, "term"), Point(path, tap.side, "term", term=term)))
        kind = "stream" if tap.in_place else ""
        if tap.side == "attention":
            return Spot(self._point(path, site.name, ""))
        heads = (tap.heads or self.n_heads) if site.name == "z" else 0
        point = self._point(path, tap.side, kind, linear=tap.linear, flat=tap.flat)
        return Spot(point, View(heads, tap.part, tap.scale))

    def _tap(self, site: Site) -> tuple[str, Tap]:
        assert self.family is not None
        if site.name == "embed":
            return self.family.layer_path(self.backend, 0), Tap("", "input")
        if site.name == "final_norm":
            return self.family.norm_path(self.backend), Tap("", "output")
        assert site.layer is not None
        tap = self.family.tap(site.name, site.layer)
        base = self.family.layer_path(self.backend, site.layer)
        return f"{base}.{tap.path}" if tap.path else base, tap

    def reason_to_refuse(self, site: Site, mode: str = "run") -> str:
        """Why a raw site cannot be had, or empty."""
        path, side = self._own_path(str(site.path)), str(site.side)
        if mode == "generate" and (path, side) in self.run_only:
            return f"{self.run_only[path, side]}; use a run"
        if self._fault:
            return f"raw modules are not offered for this model: {self._fault}"
        if path not in self.paths:
            near = [name for name in sorted(self.paths) if name.endswith(str(site.path).rsplit(".", 1)[-1])][:4]
            return f"the model has no module {site.path!r}; for example {near or sorted(self.paths)[1:5]}"
        return "" if (path, side) in self._routers else self.seen[path, side].reason_to_refuse

    def _raw(self, site: Site) -> Spot:
        if reason := self.reason_to_refuse(site):
            raise InvalidArgument(f"{site}: {reason}")
        path, side = self._own_path(str(site.path)), str(site.side)
        named = self._routers.get((path, side))
        return Spot(self._point(path, side, "")) if named is None else self.spot(named)

    def _point(self, path: str, side: str, kind: Any, *, linear: bool = False, flat: bool = False) -> Point:
        key = (path, side, kind)
        if key not in self._points:
            seen = self.seen.get((path, side))
            changes = self._changeable or (seen is not None and seen.changes)
            linear, flat = linear or key in self._linear, flat or (path, side) in self._flat
            self._points.setdefault(key, Point(path, side, kind, linear, changes, flat))
        return self._points[key]

    @cached_property
    def _linear(self) -> frozenset[tuple[str, str, str]]:
        """Where named sites say that a plain linear module computes the tensor."""
        return frozenset((path, tap.side, "") for _, path, tap in self._rows() if tap.linear)

    @cached_property
    def _flat(self) -> frozenset[tuple[str, str]]:
        """Where named sites say that the rows stand one behind the other."""
        return frozenset((path, tap.side) for _, path, tap in self._rows() if tap.flat)

    @cached_property
    def _routers(self) -> dict[tuple[str, str], Site]:
        """Routers' outputs that are their logits, which only the named site can edit before experts are chosen by them."""
        return {
            (path, "output"): site for site, path, tap in self._rows() if tap.router and site.name == "router_logits"
        }

    def _rows(self) -> list[tuple[Site, str, Tap]]:
        """Every site that the family's table places at a module of this model."""
        if self.family is None:
            return []
        found: list[tuple[Site, str, Tap]] = []
        layer = 0
        while self.family.layer_path(self.backend, layer) in self.paths:
            for name in self.family.taps:
                if not self.family.has(name, layer):
                    continue
                tap, base = self.family.tap(name, layer), self.family.layer_path(self.backend, layer)
                found.append((Site(name, layer), f"{base}.{tap.path}" if tap.path else base, tap))
            layer += 1
        return found

    def _own_path(self, path: str) -> str:
        """This backend's name of a module that the checkpoint may name otherwise (gpt2: transformer.h, in mlx-lm model.h)."""
        if path in self.paths or self.family is None:
            return path
        first, _, rest = path.partition(".")
        return f"{self.family.body[self.backend]}.{rest}" if first == self.family.body.get("torch") else path
