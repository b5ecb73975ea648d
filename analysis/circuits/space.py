"""What circuits are chosen from: every neuron, head or whole site that could be in one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo
from ...protos.sites import ATTENTION_SITES, HEAD_SITES, Site
from ..attribution.grid import expand_sites, n_heads

__all__ = ["Mask", "Part", "Scores", "Space", "Unit", "head_space", "make_space", "neuron_space"]

Part = Literal["unit", "head"]
_UNIT = re.compile(r"(?P<site>\S+)(?: #(?P<unit>\d+)| head (?P<head>\d+))?(?: @(?P<position>\d+))?")
Mask = NDArray[np.bool_]
"""Of a space's shape: what a circuit keeps."""
Scores = Any
"""Numbers of a space's shape; a NamedArray will do."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One member of a circuit: a site, or one head or unit of it, at one position or at all."""

    site: str
    position: int | None = None
    """None: every position."""
    unit: int | None = None
    """Coordinate of the last axis: a neuron, at mlp_act."""
    head: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", str(Site.parse(self.site)))
        if self.unit is not None and self.head is not None:
            raise InvalidArgument(f"a circuit's unit at {self.site} is one of a head and a coordinate, not both")

    @classmethod
    def parse(cls, name: str) -> Unit:
        """What `name` writes. Raises InvalidArgument for anything else."""
        found = _UNIT.fullmatch(name)
        if found is None:
            raise InvalidArgument(
                f'{name!r} names no unit; write "z.9 head 6", "mlp_act.3 #812" or "mlp_out.4", and " @5" for a position'
            )
        numbers = {key: None if found[key] is None else int(found[key]) for key in ("position", "unit", "head")}
        return cls(found["site"], **numbers)

    @property
    def name(self) -> str:
        """ "mlp_act.3 #812 @5", "z.9 head 6"."""
        part = f" #{self.unit}" if self.unit is not None else f" head {self.head}" if self.head is not None else ""
        return self.site + part + ("" if self.position is None else f" @{self.position}")


@dataclass(frozen=True, slots=True)
class Space:
    """All units there are: sites × positions × parts. Scores and masks of a space have its shape."""

    sites: tuple[str, ...]
    n_tokens: int | None = None
    """Prompts of so many tokens, each position a unit of its own; None: all positions together."""
    part: Part | None = None
    width: int = 1
    """Heads, or coordinates of the last axis; 1 where whole rows are units."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise InvalidArgument(f"a space needs distinct sites, at least one; got {list(self.sites)}")
        if self.width < 1 or (self.n_tokens is not None and self.n_tokens < 1):
            raise InvalidArgument(
                f"a space needs a width and a token count of 1 or more, got {self.width}, {self.n_tokens}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """[site, position?, unit or head?]"""
        positions = () if self.n_tokens is None else (self.n_tokens,)
        return (len(self.sites), *positions, *(() if self.part is None else (self.width,)))

    @property
    def size(self) -> int:
        """How many units there are."""
        return int(np.prod(self.shape))

    @property
    def site_of(self) -> NDArray[np.int64]:
        """[unit]: index of its site."""
        return np.repeat(np.arange(len(self.sites)), self.size // len(self.sites))

    def cells(self, mask: Mask) -> Mask:
        """A mask as [site, position, part], with axes of length 1 where the space has none."""
        return self.checked(mask).reshape(len(self.sites), self.n_tokens or 1, self.width)

    def checked(self, mask: Any) -> Mask:
        """A mask of the right shape. Raises InvalidArgument for another."""
        found = np.asarray(mask)
        if found.dtype != np.bool_ or found.shape != self.shape:
            raise InvalidArgument(
                f"a mask is boolean of shape {list(self.shape)}, got {found.dtype} {list(found.shape)}"
            )
        return found

    def scores(self, scores: Scores) -> NDArray[np.float64]:
        """Scores as a plain array of the space's shape; axes are flattened, so [site, layer, …] fits too."""
        values = np.asarray(getattr(scores, "values", scores), dtype=np.float64)
        if values.size != self.size or values.shape[-1:] != self.shape[-1:]:
            raise InvalidArgument(f"scores have shape {list(values.shape)}; this space needs {list(self.shape)}")
        if not np.isfinite(values).all():
            raise InvalidArgument("scores hold NaN or infinity; give a number for every unit")
        return values.reshape(self.shape)

    def unit_at(self, index: int) -> Unit:
        """The unit at a flat index."""
        site, position, part = np.unravel_index(index, (len(self.sites), self.n_tokens or 1, self.width))
        options: dict[str, int] = {} if self.part is None else {self.part: int(part)}
        return Unit(self.sites[site], None if self.n_tokens is None else int(position), **options)

    def index_of(self, unit: Unit) -> int:
        """The flat index of a unit. Raises InvalidArgument when it is not in the space."""
        part = 0 if self.part is None else cast("int | None", getattr(unit, self.part))
        position = 0 if self.n_tokens is None else unit.position
        fits = (unit.position is None) == (self.n_tokens is None)
        if unit.site not in self.sites or part is None or position is None or not fits:
            raise InvalidArgument(f"{unit.name} is no unit of this space ({self!r})")
        if not (0 <= part < self.width and 0 <= position < (self.n_tokens or 1)):
            raise InvalidArgument(f"{unit.name} is out of range in this space ({self!r})")
        return (self.sites.index(unit.site) * (self.n_tokens or 1) + position) * self.width + part

    def top(self, scores: Scores, n: int, *, absolute: bool = False) -> Mask:
        """The `n` units of the highest scores (of the largest |score| with `absolute`)."""
        values = self.scores(scores).ravel()
        if not 0 <= n <= self.size:
            raise InvalidArgument(f"n must be in 0 … {self.size:,} (the units of the space), got {n}")
        order = np.argsort(-(np.abs(values) if absolute else values), kind="stable")
        mask = np.zeros(self.size, dtype=bool)
        mask[order[:n]] = True
        return mask.reshape(self.shape)

    def __repr__(self) -> str:
        parts = "" if self.part is None else f" × {self.width:,} {self.part}s"
        positions = "" if self.n_tokens is None else f" × {self.n_tokens} positions"
        return f"Space({self.sites[0]} … {self.sites[-1]}{positions}{parts}: {self.size:,} units)"


def make_space(
    info: ModelInfo, sites: str | Sequence[str], *, n_tokens: int | None = None, part: Part | None = None
) -> Space:
    """The units of some sites: kinds ("attn_out": every layer), patterns, or single sites.

    `part`: "unit" for each coordinate of the last axis, "head" for each head. Raises InvalidArgument where the sites
    differ in width, or have no heads.
    """
    _, names = expand_sites(info, sites)
    parsed = [Site.parse(name) for name in names]
    kinds = dict.fromkeys(site.name for site in parsed)
    if wrong := [kind for kind in kinds if kind in ATTENTION_SITES]:
        raise InvalidArgument(f"{wrong[0]} cannot be part of a circuit; take heads of z")
    if part is None:
        return Space(names, n_tokens)
    if part == "head":
        widths = {n_heads(info, site.name, site.layer) for site in parsed}
    elif headed := [kind for kind in kinds if kind in HEAD_SITES]:
        raise InvalidArgument(f"{headed[0]} has heads; take part='head', or coordinates of another site")
    else:
        widths = {known.at(site.layer)[-1] for site in parsed if (known := info.site(site.name)) is not None}
    if len(widths) != 1:
        raise InvalidArgument(
            f"the sites {', '.join(kinds)} differ in width ({sorted(widths)}); take one kind, of layers that are alike"
        )
    return Space(names, n_tokens, part, widths.pop())


def neuron_space(info: ModelInfo, n_tokens: int | None = None) -> Space:
    """Every neuron of mlp_act, at each of `n_tokens` positions (None: at all together)."""
    return make_space(info, "mlp_act", n_tokens=n_tokens, part="unit")


def head_space(info: ModelInfo, n_tokens: int | None = None) -> Space:
    """Every attention head (its z), at each of `n_tokens` positions (None: at all together)."""
    return make_space(info, "z", n_tokens=n_tokens, part="head")
