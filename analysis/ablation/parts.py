"""What is taken out: a whole site, some of its heads, or some of its neurons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from ...clients import hook
from ...clients.requests.hooks import Options
from ...protos.edits import Noise, Replace, Scale, Source
from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo
from ...protos.sites import Site
from ...protos.spec import Hook
from ..attribution.grid import Layers, from_start

__all__ = ["Part", "Parts", "parts_of"]

SHORT = {"heads": ("z", "head"), "neurons": ("mlp_act", "neuron")}
"""The site at which heads and neurons are ablated, and the name of their axis."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of one site. At most one of heads and units."""

    site: str
    heads: tuple[int, ...] | None = None
    """At sites with heads; None: all."""
    units: tuple[int, ...] | None = None
    """Coordinates of the last axis (neurons, at mlp_act); None: all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", str(Site.parse(self.site)))
        if self.heads is not None and self.units is not None:
            raise InvalidArgument(f"a part of {self.site} names heads or units, not both")
        for name in ("heads", "units"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(int(i) for i in value))

    @property
    def layer(self) -> int | None:
        """0-based; None for global and raw sites."""
        return Site.parse(self.site).layer

    def replace(self, source: Source, **options: Unpack[Options]) -> Hook:
        """A hook that puts a source in the part's place."""
        return hook(self.site, Replace(source, units=self.units, heads=self.heads), **options)

    def scale(self, factor: float, **options: Unpack[Options]) -> Hook:
        """A hook that multiplies the part."""
        return hook(self.site, Scale(factor, units=self.units, heads=self.heads), **options)

    def noise(self, std: float, seed: int, **options: Unpack[Options]) -> Hook:
        """A hook that adds Gaussian noise to the part."""
        return hook(self.site, Noise(std, seed, units=self.units, heads=self.heads), **options)

    def of(self, rows: Any) -> Any:
        """The part's own values of rows of the whole site, [..., width] or [..., head, width]."""
        if self.heads is not None:
            return rows[..., list(self.heads), :]
        return rows if self.units is None else rows[..., list(self.units)]

    def __str__(self) -> str:
        if self.heads is not None:
            return f"{self.site} heads {', '.join(map(str, self.heads))}"
        return self.site if self.units is None else f"{self.site} units {', '.join(map(str, self.units))}"


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts in C order over named axes."""

    axes: dict[str, list[int]]
    """"layer", then "head" or "neuron" where parts are narrower than a site."""
    parts: tuple[Part, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Each once, in order."""
        return tuple(dict.fromkeys(part.site for part in self.parts))


def parts_of(info: ModelInfo, over: str, *, layers: Layers = None, indices: Sequence[int] | None = None) -> Parts:
    """Every part that a sweep takes out in turn.

    `over`: "heads" (of z), "neurons" (of mlp_act), or a kind of site ("attn_out": the whole of it, layer by layer).
    `layers`: default all that offer the site; negative: from the last. `indices`: of the heads or neurons, the same in each layer; default all.
    Raises InvalidArgument for a site that the model has not, or a layer, head or neuron out of range.
    """
    name, axis = SHORT.get(over, (over, None))
    site = info.site(name)
    if site is None or site.layers is None:
        offered = ", ".join(s.name for s in info.sites if s.layers is not None)
        raise InvalidArgument(f'over={over!r}; allowed: "heads", "neurons", or a site that layers have: {offered}')
    given = None if layers is None else from_start(layers, info.n_layers)
    chosen = _chosen(given, site.layers, f"layers with {name}")
    if axis is None:
        if indices is not None:
            raise InvalidArgument(f"indices are of heads or neurons, but over={over!r} takes out whole sites")
        return Parts({"layer": chosen}, tuple(Part(f"{name}.{layer}") for layer in chosen))
    counts = {site.at(layer)[0] for layer in chosen}
    if len(counts) > 1 and indices is None:
        raise InvalidArgument(
            f"layers {chosen} differ in {axis}s ({sorted(counts)}); name layers= that are alike, or indices= that all have"
        )
    which = _chosen(indices, range(min(counts)), f"{axis}s")
    cells = itertools.product(chosen, which)
    if axis == "head":
        parts = tuple(Part(f"{name}.{layer}", heads=(i,)) for layer, i in cells)
    else:
        parts = tuple(Part(f"{name}.{layer}", units=(i,)) for layer, i in cells)
    return Parts({"layer": chosen, axis: which}, parts)


def _chosen(given: Sequence[int] | None, allowed: Sequence[int], what: str) -> list[int]:
    chosen = list(allowed) if given is None else [int(i) for i in given]
    wrong = [i for i in chosen if i not in allowed]
    if wrong or not chosen or len(set(chosen)) != len(chosen):
        raise InvalidArgument(
            f"{what}: {wrong or chosen} given; allowed are distinct ones of {min(allowed)} … {max(allowed)}"
        )
    return chosen
