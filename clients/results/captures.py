"""What the hooks of a request read from one input: read-only numpy arrays by site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from ...protos.errors import InvalidArgument, NotFound
from ...protos.sites import LAYER_SITES, Site, SitePattern
from ...protos.tensors import Array
from ...protos.wire.assemble import AssembledCapture, row_axis
from .latents import LatentRows

__all__ = ["BySite", "Captures", "joined", "parted"]

_GRADIENT = "gradient"


class Captures:
    """Arrays by site. They are read-only, as every look-up gives the same one: `.copy()` an array to change it.

    Rows are in the order of `positions`. A site that two hooks captured is reached through `hook(id or index)`. Where a
    session changed a hook while it captured, its rows before and after are different tensors: `revision(number)`.
    """

    def __init__(self, entries: Iterable[AssembledCapture] = (), n_layers: int = 0) -> None:
        """`n_layers` of the model, so that `resid_post.-1` can be read; 0: not known."""
        self.entries: tuple[AssembledCapture, ...] = tuple(entries)
        self.n_layers = n_layers
        self._stacked: dict[tuple[str, str | None], Array] = {}
        for entry in self.entries:
            entry.array.flags.writeable = False

    @property
    def sites(self) -> tuple[str, ...]:
        """Every captured site once, in forward order; raw sites last."""
        names = dict.fromkeys(entry.key.site for entry in self.entries)
        return tuple(sorted(names, key=lambda name: Site.parse(name).order or (1 << 31, 0)))

    def __getitem__(self, site: str) -> Array:
        """[pos, …the site's own axes] at `resid_post.10`; or what a hook's id read, where that is one tensor.

        Raises NotFound when it was not captured, InvalidArgument when several tensors answer to the name.
        """
        return self.array(site)

    def array(self, site: str, part: str | None = None) -> Array:
        """As `[site]`; `part` chooses between the tensors of a top_k, "value" and "index", and next_logprob's own, ""."""
        return self.entry(site, part).array

    def positions(self, site: str) -> tuple[int, ...]:
        """Absolute token position of each row; empty for a mean."""
        found = self._matching(site, None)
        if len(_sources(found)) == 1 and len({entry.key.site for entry in found}) == 1:  # parts of one tensor
            return found[0].positions
        return self.entry(site, None).positions

    def top_k(self, site: str) -> tuple[Array, Array]:
        """(values, indices), each [pos, k] ([pos, head, k] at head sites); of next_logprob with `top`, log-probabilities."""
        return self.array(site, "value"), self.array(site, "index")

    def latents(self, site: str) -> LatentRows:
        """The latents of an SAE that a hook read at a site, with `top_k`; from `gradients`, their gradients too.

        Raises NotFound when none was read, InvalidArgument when several hooks read there: `hook(id).latents(site)`.
        """
        parts = {entry.key.part: entry for entry in self._matching(site, None)}
        if "count" not in parts and len(_sources(self._matching(site, None))) == 1:
            raise NotFound(
                f"{site} holds no sparse latents: those of a capture without top_k are an array, [{site!r}] ([pos, latent]; "
                "of gradients too: their product is the attribution)"
            )
        found = [self.entry(site, part) for part in ("value", "index", "count")]
        extra = [None if part not in parts else self.entry(site, part).array for part in ("gradient", "error", "bias")]
        values, ids, counts = (entry.array for entry in found)
        return LatentRows(found[0].positions, ids, values, counts, *extra)

    def hook(self, key: str | int) -> Captures:
        """What one hook read: by its id, or by its index in the plan (hooks first, then captures)."""
        found = [entry for entry in self.entries if key == (entry.id if isinstance(key, str) else entry.key.hook)]
        if not found:
            known = ", ".join(f"{hook} ({name!r})" for hook, name in self._hooks(self.entries)) or "none"
            raise NotFound(f"no rows of hook {key!r}; hooks with rows: {known}")
        return Captures(found, self.n_layers)

    @property
    def revisions(self) -> tuple[int, ...]:
        """What `revision` takes here, ascending; 0 stands for the request's own hooks."""
        return tuple(sorted({entry.key.revision for entry in self.entries}))

    def revision(self, number: int) -> Captures:
        """What the hooks read that are what they are since this revision of the session; 0: the request's own hooks.

        A hook that an update left as it was goes on with its older revision, and so do its rows.
        """
        found = [entry for entry in self.entries if entry.key.revision == number]
        if not found:
            known = ", ".join(map(str, self.revisions)) or "none"
            raise NotFound(f"no rows of hooks that are what they are since revision {number}; there are: {known}")
        return Captures(found, self.n_layers)

    def layers(self, name: str) -> tuple[int, ...]:
        """The layers at which a kind of site was captured, ascending: the leading axis of `stack`."""
        parsed = (Site.parse(entry.key.site) for entry in self.entries)
        return tuple(sorted({site.layer for site in parsed if site.name == name and site.layer is not None}))

    def stack(self, name: str, part: str | None = None) -> Array:
        """[layer, pos, …] of a kind of site (`resid_post`), over the captured layers in ascending order.

        Of a site (`resid_post.10`, `logits`) or a hook's id it is `array(name)`. Raises NotFound when there is none,
        InvalidArgument when the layers have different rows.
        """
        key = (name, part)
        if key not in self._stacked:
            self._stacked[key] = self._stack(name, part)
        return self._stacked[key]

    def last(self, name: str, position: int | None = None) -> Array:
        """One row of what `stack(name)` gives, its row axis gone: that at a position, or the last that was captured.

        Raises NotFound when there is no row of it.
        """
        stacked, sites = self.stack(name), self.sites_of(name)
        site = name if sites is None else sites[0]
        where = self.positions(site)
        if not where or (position is not None and position not in where):
            wanted = "" if position is None else f" of the last token (position {position})"
            raise NotFound(
                f"{site} was captured at positions {_few(where)}, so there is no row{wanted}; capture it too"
            )
        axis = row_axis(self.entry(site).key.site) + (sites is not None)
        row = stacked.take(where.index(max(where) if position is None else position), axis)
        row.flags.writeable = False
        return row

    def sites_of(self, name: str) -> list[str] | None:
        """The sites that a kind, or a pattern of several layers, stands for here; None for one site or a hook's id.

        Of a kind or `.*` these are the captured layers; of a range all its layers, captured or not.
        """
        if name in LAYER_SITES:
            kind, named = name, None
        else:
            pattern = _pattern(name)
            if pattern is None or pattern.layers is None or pattern.layer is not None:
                return None
            kind, named = pattern.name, None if pattern.layers == (None, None) else pattern
        layers = self.layers(kind) if named is None else [site.layer for site in named.expand(self._depth(name, named))]
        if not layers:
            raise NotFound(f"no layer of {kind!r} was captured; {self._captured()}")
        return [f"{kind}.{layer}" for layer in layers]

    def _depth(self, name: str, pattern: SitePattern) -> int:
        """Layers of the model, for a pattern that needs them. Raises InvalidArgument when they are not known."""
        if self.n_layers:
            return self.n_layers
        if pattern.from_end or None in (pattern.layers or ()):
            raise InvalidArgument(
                f"{name!r} counts to the last layer, and this result does not say how many there are; name the layers "
                f"themselves: {self._captured()}"
            )
        return 1 << 30

    def _canonical(self, name: str) -> str | None:
        """The site's canonical name; None for what is no site (it may be a hook's id). Raises for a pattern."""
        pattern = _pattern(name)
        if pattern is None:
            return None
        if pattern.layers is not None and pattern.layer is None:
            several = pattern.name if pattern.layers == (None, None) else name
            raise InvalidArgument(f"{name!r} stands for several layers; write .stack({several!r}), or name one layer")
        return str(pattern.expand(self._depth(name, pattern))[0]) if pattern.from_end else str(pattern)

    def _stack(self, name: str, part: str | None) -> Array:
        sites = self.sites_of(name)
        if sites is None:
            return self.array(name, part)
        found = [self.entry(site, part) for site in sites]
        other = next(
            (e for e in found if (e.positions, e.array.shape) != (found[0].positions, found[0].array.shape)), None
        )
        if other is not None:
            told = f"positions {_few(other.positions)} and {_few(found[0].positions)}"
            if other.positions == found[0].positions:
                told = f"shapes {list(other.array.shape)} and {list(found[0].array.shape)}"
            raise InvalidArgument(
                f"{other.key.site} has other rows than {found[0].key.site} ({told}), so they do not stack; read the sites one "
                "by one"
            )
        stacked = np.stack([entry.array for entry in found])
        stacked.flags.writeable = False
        return stacked

    def entry(self, name: str, part: str | None = None) -> AssembledCapture:
        """The one tensor that a name stands for. Raises as `[site]`."""
        found = self._matching(name, part)
        if len(found) == 1:
            return found[0]
        if len(_sources(found)) > 1:
            hooks = " and ".join(f"{hook} (id {label!r})" for hook, label in self._hooks(found))
            revisions = " and ".join(map(str, Captures(found).revisions))
            told = f"hooks {hooks}" if " and " in hooks else f"hook {hooks} as it is since revisions {revisions}"
            raise InvalidArgument(f"{name} was captured by {told}; choose one: {_ways(found, name)}")
        sites = list(dict.fromkeys(entry.key.site for entry in found))
        if len(sites) > 1:
            raise InvalidArgument(f"hook {name!r} read {len(sites)} sites; choose one: .hook({name!r})[{sites[0]!r}]")
        parts = [entry.key.part for entry in found]
        if "" in parts:  # next_logprob's own, beside the likeliest tokens'
            return found[parts.index("")]
        if "count" in parts:
            raise InvalidArgument(f"{name} holds sparse latents; write .latents({name!r})")
        raise InvalidArgument(
            f"{name} has the parts {', '.join(parts)}; write .top_k({name!r}) or .array({name!r}, part={parts[0]!r})"
        )

    def _matching(self, name: str, part: str | None) -> list[AssembledCapture]:
        site = self._canonical(name)
        found = [entry for entry in self.entries if site is not None and entry.key.site == site]
        found = found or [entry for entry in self.entries if entry.id == name]
        if not found:
            raise NotFound(f"{name!r} was not captured; {self._captured()}")
        chosen = [entry for entry in found if part in (None, entry.key.part)]
        if not chosen:
            raise NotFound(f"{name!r} has no part {part!r}; it has {', '.join(repr(e.key.part) for e in found)}")
        return chosen

    def _captured(self) -> str:
        sites = self.sites
        shown = ", ".join(sites[:8]) + (f", … ({len(sites)} in all)" if len(sites) > 8 else "")
        return f"captured: {shown or 'nothing'}"

    @staticmethod
    def _hooks(entries: Iterable[AssembledCapture]) -> list[tuple[int, str]]:
        return list(dict.fromkeys((entry.key.hook, entry.id) for entry in entries))

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str) and (
            self._canonical(site) in self.sites or any(entry.id == site for entry in self.entries)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def keys(self) -> tuple[str, ...]:
        """As `sites`."""
        return self.sites

    def values(self) -> Iterator[Array]:
        """The array of each site. Raises InvalidArgument at one that holds several tensors."""
        return (self[site] for site in self.sites)

    def items(self) -> Iterator[tuple[str, Array]]:
        """Each site with its array, as of `values`."""
        return ((site, self[site]) for site in self.sites)

    def _ipython_key_completions_(self) -> list[str]:
        ids = (entry.id for entry in self.entries if entry.id != f"hook{entry.key.hook}")
        return list(dict.fromkeys((*self.sites, *ids)))

    def __repr__(self) -> str:
        return f"Captures({self._captured()})"


class BySite:
    """What has captures, and is read like a dict of their sites."""

    __slots__ = ()

    captures: Captures

    def __getitem__(self, site: str) -> Array:
        """The rows at a site: [pos, …]."""
        return self.captures[site]

    def __contains__(self, site: object) -> bool:
        return site in self.captures

    def __iter__(self) -> Iterator[str]:
        return iter(self.captures)

    def keys(self) -> tuple[str, ...]:
        """The captured sites."""
        return self.captures.sites

    def values(self) -> Iterator[Array]:
        """The array of each site. Raises InvalidArgument at one that holds several tensors."""
        return self.captures.values()

    def items(self) -> Iterator[tuple[str, Array]]:
        """Each site with its array, as of `values`."""
        return self.captures.items()

    def positions(self, site: str) -> tuple[int, ...]:
        """Absolute position of each row."""
        return self.captures.positions(site)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.keys())


def parted(entries: Iterable[AssembledCapture], n_layers: int = 0) -> tuple[Captures, Captures]:
    """Values and gradients; what a reduction calls its parts is the same in both."""
    values: list[AssembledCapture] = []
    gradients: list[AssembledCapture] = []
    for entry in entries:
        first, _, rest = entry.key.part.partition("_")
        if first == _GRADIENT:
            gradients.append(replace(entry, key=entry.key._replace(part=rest)))
        else:
            values.append(entry)
    return Captures(values, n_layers), Captures(gradients, n_layers)


def joined(values: Captures, gradients: Captures) -> list[AssembledCapture]:
    """The entries that `parted` parts."""
    marked = [
        replace(entry, key=entry.key._replace(part="_".join(filter(None, (_GRADIENT, entry.key.part)))))
        for entry in gradients.entries
    ]
    return [*values.entries, *marked]


def _pattern(name: str) -> SitePattern | None:
    """What a site's name stands for; None for what is no site."""
    try:
        return SitePattern.parse(name)
    except InvalidArgument:
        return None


def _sources(entries: Iterable[AssembledCapture]) -> set[tuple[int, int]]:
    """What read them: a hook, as it was since a revision."""
    return {(entry.key.hook, entry.key.revision) for entry in entries}


def _ways(found: list[AssembledCapture], name: str) -> str:
    """How to say which one is meant, by the example of the first."""
    hook, revision, label = found[0].key.hook, found[0].key.revision, found[0].id
    ways = {
        f".hook({label!r})": [entry for entry in found if entry.id == label],
        f".hook({hook})": [entry for entry in found if entry.key.hook == hook],
        f".revision({revision})": [entry for entry in found if entry.key.revision == revision],
    }
    enough = [way for way, left in ways.items() if len(_sources(left)) == 1]
    read = f".latents({name!r})" if any(entry.key.part == "count" for entry in found) else f"[{name!r}]"
    return " or ".join(f"{way}{read}" for way in enough or [f".hook({hook}).revision({revision})"])


def _few(positions: tuple[int, ...]) -> str:
    return str(list(positions)) if len(positions) <= 6 else f"[{positions[0]} … {positions[-1]}; {len(positions)}]"
