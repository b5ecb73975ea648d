"""Several spaces side by side, so that one circuit may hold heads, neurons and whole sites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from .space import Mask, Scores, Space, Unit

__all__ = ["AnySpace", "JoinedSpace", "node_space"]


@dataclass(frozen=True, slots=True)
class JoinedSpace:
    """Spaces of distinct sites, one after another. Scores and masks have one axis, of all their units."""

    parts: tuple[Space, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if len(self.parts) < 2:
            raise InvalidArgument("a joined space has two parts or more; take the one space as it is")
        if len(set(self.sites)) != len(self.sites):
            twice = next(site for site in self.sites if self.sites.count(site) > 1)
            raise InvalidArgument(f"{twice} is in two parts of a joined space, so its units would count twice")
        if len({part.n_tokens for part in self.parts}) > 1:
            raise InvalidArgument("the parts of a joined space tell positions apart all alike, or none does")

    @property
    def sites(self) -> tuple[str, ...]:
        """Of all parts."""
        return tuple(site for part in self.parts for site in part.sites)

    @property
    def n_tokens(self) -> int | None:
        """As in each part."""
        return self.parts[0].n_tokens

    @property
    def size(self) -> int:
        """How many units there are."""
        return sum(part.size for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """[unit]"""
        return (self.size,)

    @property
    def site_of(self) -> NDArray[np.int64]:
        """[unit]: index of its site."""
        starts = np.cumsum([0, *(len(part.sites) for part in self.parts[:-1])])
        return np.concatenate([part.site_of + start for part, start in zip(self.parts, starts, strict=True)])

    def checked(self, mask: Any) -> Mask:
        """A mask of the right shape. Raises InvalidArgument for another."""
        found = np.asarray(mask)
        if found.dtype != np.bool_ or found.shape != self.shape:
            raise InvalidArgument(f"a mask is boolean of shape [{self.size}], got {found.dtype} {list(found.shape)}")
        return found

    def scores(self, scores: Scores) -> NDArray[np.float64]:
        """Scores as a plain array [unit]."""
        values = np.asarray(getattr(scores, "values", scores), dtype=np.float64)
        if values.shape != self.shape or not np.isfinite(values).all():
            raise InvalidArgument(
                f"scores of a joined space need shape [{self.size}] and no NaN, got {list(values.shape)}; "
                "space.joined_scores([…]) puts those of its parts together"
            )
        return values

    def joined_scores(self, scores: Sequence[Scores]) -> NDArray[np.float64]:
        """One array of the scores of each part, in order."""
        if len(scores) != len(self.parts):
            raise InvalidArgument(f"{len(scores)} arrays of scores for {len(self.parts)} parts")
        return np.concatenate([part.scores(one).ravel() for part, one in zip(self.parts, scores, strict=True)])

    def split(self, mask: Mask) -> list[tuple[Space, Mask]]:
        """Each part with its own share of a mask."""
        flat, found, start = self.checked(mask), list[tuple[Space, Mask]](), 0
        for part in self.parts:
            found.append((part, flat[start : start + part.size].reshape(part.shape)))
            start += part.size
        return found

    def unit_at(self, index: int) -> Unit:
        """The unit at a flat index."""
        for part in self.parts:
            if index < part.size:
                return part.unit_at(index)
            index -= part.size
        raise InvalidArgument(f"there is no unit {index} behind the last of this space")

    def index_of(self, unit: Unit) -> int:
        """The flat index of a unit. Raises InvalidArgument when it is not in the space."""
        start = 0
        for part in self.parts:
            if unit.site in part.sites:
                return start + part.index_of(unit)
            start += part.size
        raise InvalidArgument(f"{unit.name} is no unit of this space ({self!r})")

    def top(self, scores: Scores, n: int, *, absolute: bool = False) -> Mask:
        """The `n` units of the highest scores (of the largest |score| with `absolute`)."""
        values = self.scores(scores)
        if not 0 <= n <= self.size:
            raise InvalidArgument(f"n must be in 0 … {self.size:,} (the units of the space), got {n}")
        mask = np.zeros(self.size, dtype=bool)
        mask[np.argsort(-(np.abs(values) if absolute else values), kind="stable")[:n]] = True
        return mask

    def __repr__(self) -> str:
        return f"JoinedSpace({', '.join(repr(part) for part in self.parts)})"


AnySpace = Space | JoinedSpace


def node_space(units: Iterable[Unit], widths: dict[str, int], n_tokens: int | None = None) -> AnySpace:
    """The smallest space of whole layers' parts that holds all of some units.

    `widths`: site kind → heads or coordinates, for units that are such. Sites of one kind that are taken whole and in parts
    become units of the parts' size, so they cannot be mixed: InvalidArgument.
    """
    groups: dict[tuple[str | None, int], list[str]] = {}
    parts: dict[str, str | None] = {}
    for unit in units:
        part = "head" if unit.head is not None else "unit" if unit.unit is not None else None
        if parts.setdefault(unit.site, part) != part:
            raise InvalidArgument(f"{unit.site} is in the circuit whole and in parts; take one of them")
        kind = unit.site.split(".")[0]
        if part is not None and kind not in widths:
            raise InvalidArgument(f"{unit.name} needs the number of {part}s of {kind}; name it in widths")
        sites = groups.setdefault((part, 1 if part is None else widths[kind]), [])
        if unit.site not in sites:
            sites.append(unit.site)
    if not groups:
        raise InvalidArgument("there are no units to make a space of")
    spaces = [Space(tuple(sites), n_tokens, part, width) for (part, width), sites in groups.items()]  # pyright: ignore[reportArgumentType] - a part's name
    return spaces[0] if len(spaces) == 1 else JoinedSpace(tuple(spaces))
