"""The cells that a method scores: sites by layer, positions, heads, with the axes that they lie along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral
from typing import Any, Literal, cast

from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo
from ...protos.sites import HEAD_SITES, LAYER_SITES, Site

__all__ = [
    "Cell",
    "Grid",
    "Heads",
    "Layers",
    "Positions",
    "chosen_layers",
    "expand_sites",
    "from_start",
    "make_grid",
    "n_heads",
]

Positions = Literal["all"] | Sequence[int] | None
"""None: each position on its own. "all": all together. A list: each of these on its own; negative from the end."""
Heads = Literal["all"] | Sequence[int] | None
"""None: all heads together. "all": each on its own. A list: each of these on its own."""
Layers = int | Sequence[int] | None
"""Of sites named by their kind ("resid_pre"). None: every one. Negative: from the last."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to patch."""

    site: str
    position: int | None
    """None: every position."""
    head: int | None
    """None: the whole row."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells in C order over `axes`."""

    axes: dict[str, list[Any]]
    """Some of "site", "layer", "position", "head", in this order, each with its labels."""
    sites: tuple[str, ...]
    """Concrete sites; they make up the leading axis or axes."""
    positions: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    cells: tuple[Cell, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(len(labels) for labels in self.axes.values())


def make_grid(
    info: ModelInfo,
    sites: str | Sequence[str],
    n_tokens: int,
    positions: Positions = None,
    heads: Heads = None,
    layers: Layers = None,
) -> Grid:
    """The product of sites, positions and heads.

    `sites`: kinds ("resid_pre": all its layers, or `layers`), patterns ("z.4:8", "z.-4:") or single sites. Axes: "site"
    where there is more than one kind, "layer" where every kind covers the same layers; otherwise "site" alone, with the
    sites' own names.
    """
    axes, names = expand_sites(info, sites, layers)
    where = _positions(positions, n_tokens)
    which = _heads(info, names, heads)
    if where is not None:
        axes["position"] = list(where)
    if which is not None:
        axes["head"] = list(which)
    cells = tuple(Cell(*found) for found in product(names, where or (None,), which or (None,)))
    return Grid(axes, names, where, which, cells)


def expand_sites(
    info: ModelInfo, sites: str | Sequence[str], layers: Layers = None
) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
    """The axes that sites lie along, and their concrete names in that order."""
    listed = [sites] if isinstance(sites, str) else list(sites)
    if not listed:
        raise InvalidArgument('no sites; name at least one, for example "resid_pre" (all its layers) or "resid_pre.10"')
    chosen = None if layers is None else chosen_layers(layers, info.n_layers)
    named = [text for text in listed if text not in LAYER_SITES]
    if layers is not None and named:
        raise InvalidArgument(
            f"layers= goes with kinds of sites, such as resid_pre, and {named[0]!r} names its own; leave one of the two out"
        )
    groups = [
        info.expand(f"{text}.*" if text in LAYER_SITES else text)
        if chosen is None or text not in LAYER_SITES
        else tuple(Site(text, layer) for layer in chosen)
        for text in listed
    ]
    for group in groups:
        if (name := group[0].name) != "module" and info.site(name) is None:
            offered = ", ".join(site.name for site in info.sites)
            raise InvalidArgument(
                f"this model ({info.architecture} on {info.backend}) has no site {name}; it has {offered}"
            )
    names = tuple(str(site) for group in groups for site in group)
    if len(set(names)) != len(names):
        raise InvalidArgument(f"sites name the same tensor twice: {listed}")
    depths = [[site.layer for site in group] for group in groups]
    if all(found == depths[0] and None not in found for found in depths) and len({g[0].name for g in groups}) == len(
        groups
    ):
        axes: dict[str, list[Any]] = {"site": [group[0].name for group in groups]} if len(groups) > 1 else {}
        return {**axes, "layer": list(depths[0])}, names
    return {"site": list(names)}, names


def chosen_layers(layers: Layers, n_layers: int) -> list[int]:
    """Layers of a model in the order given, counted from the start. Raises InvalidArgument for ones that it has not."""
    if layers is None:
        return list(range(n_layers))
    found = from_start(layers, n_layers)
    wrong = [layer for layer in found if not 0 <= layer < n_layers]
    if wrong or not found:
        raise InvalidArgument(
            f"layers {layers} given; the model has 0 … {n_layers - 1} (negative: from the last), name at least one"
        )
    if len(set(found)) != len(found):
        raise InvalidArgument(f"layers {layers} name one layer twice")
    return found


def from_start(layers: int | Sequence[int], n_layers: int) -> list[int]:
    """Layers counted from the start, whether or not the model has them."""
    listed = [layers] if isinstance(layers, Integral) else cast("Sequence[int]", layers)
    return [int(layer) + n_layers if layer < 0 else int(layer) for layer in listed]


def n_heads(info: ModelInfo, kind: str, layer: int | None = None) -> int:
    """Heads at a kind of site, in a layer or in most of them. Raises InvalidArgument where it has none."""
    if kind not in HEAD_SITES:
        raise InvalidArgument(f"{kind} has no heads; heads= goes with {', '.join(sorted(HEAD_SITES))}")
    site = info.site(kind)
    if site is not None:
        return site.at(layer)[0]
    return info.n_kv_heads if kind in ("k", "v") else info.n_heads


def _positions(positions: Positions, n_tokens: int) -> tuple[int, ...] | None:
    if positions is None:
        return tuple(range(n_tokens))
    if isinstance(positions, str):
        if positions != "all":
            raise InvalidArgument(
                f"positions {positions!r}; allowed: None (each), 'all' (together), or a list of integers"
            )
        return None
    found = tuple(int(p) for p in positions)
    bad = [p for p in found if not -n_tokens <= p < n_tokens]
    if bad or not found:
        raise InvalidArgument(f"positions {bad or list(found)} are not in a prompt of {n_tokens} tokens")
    return found


def _heads(info: ModelInfo, names: Sequence[str], heads: Heads) -> tuple[int, ...] | None:
    if heads is None:
        return None
    parsed = [Site.parse(name) for name in names]
    counts = {n_heads(info, site.name, site.layer) for site in parsed}
    if len(counts) != 1:
        raise InvalidArgument(
            f"the sites {sorted({site.name for site in parsed})} differ in heads ({sorted(counts)}); call once a kind, and once "
            "for the layers of each number"
        )
    count = counts.pop()
    found = tuple(range(count)) if isinstance(heads, str) else tuple(int(h) for h in heads)
    if isinstance(heads, str) and heads != "all":
        raise InvalidArgument(f"heads {heads!r}; allowed: None (together), 'all' (each), or a list of integers")
    if not found or not all(0 <= h < count for h in found):
        raise InvalidArgument(f"heads {list(found)}; allowed: 0 … {count - 1}")
    return found
