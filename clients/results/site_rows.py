"""Captured sites at a glance: a line for each run of layers whose tensors look alike."""

from __future__ import annotations

from itertools import groupby

from ...protos.sites import Site
from ...protos.tensors import dtype_name
from ...protos.wire.assemble import AssembledCapture
from .captures import Captures

__all__ = ["site_rows"]

MAX_SITE_ROWS = 12


def site_rows(captures: Captures, unnamed: frozenset[int]) -> list[tuple[str, str]]:
    """A line for each run of layers whose tensors look alike."""
    several = len({entry.key.hook for entry in captures.entries}) > 1
    lines: list[tuple[str, str]] = []
    for look, group in groupby(sorted(captures.entries, key=_order), key=lambda entry: _look(entry, unnamed)):
        sites = [Site.parse(entry.key.site) for entry in group]
        label = str(sites[0])
        if len(sites) > 1:
            layers = [site.layer or 0 for site in sites]
            label = f"{sites[0].name}.{layers[0]}…{layers[-1]}"
        note = "  hook " + repr(look[1]) if several else ""
        note += f"  since revision {look[6]}" if len(captures.revisions) > 1 else ""
        lines.append((label, f"{look[4]} {look[3]}{' ' + look[5] if look[5] else ''}{note}"))
    more = len(lines) - MAX_SITE_ROWS
    return lines if more <= 0 else [*lines[:MAX_SITE_ROWS], ("…", f"{more} more lines of sites")]


def _order(entry: AssembledCapture) -> tuple[int, int, str, str, int]:
    site, key = Site.parse(entry.key.site), entry.key
    return (key.hook, key.revision, site.name, key.part, -1 if site.layer is None else site.layer)


def _look(entry: AssembledCapture, unnamed: frozenset[int]) -> tuple[int, str, str, str, str, str, int]:
    site, key = Site.parse(entry.key.site), entry.key
    name = key.site if site.name == "module" else site.name
    return (
        key.hook,
        entry.id,
        name,
        dtype_name(entry.array.dtype),
        _shape(entry, site, unnamed),
        key.part,
        key.revision,
    )


def _shape(entry: AssembledCapture, site: Site, unnamed: frozenset[int]) -> str:
    """`[pos 12, d_model 576]`; without names where a reduction or an SAE changed the axes."""
    shape = entry.array.shape
    named = len(shape) == len(site.axes) and not entry.key.part and entry.key.hook not in unnamed
    return (
        f"[{', '.join(f'{axis} {n}' for axis, n in zip(site.axes, shape, strict=True))}]" if named else str(list(shape))
    )
