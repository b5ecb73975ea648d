"""A run that is made in several forwards, so that others get their turn between them: what it has so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...protos.tensors import Array
from .sequence import Rows

__all__ = ["RunParts", "joined"]


@dataclass(eq=False, slots=True)
class RunParts:
    """Keys and values of the positions that have run, and the rows captured there."""

    done: int = 0
    """Positions."""
    keys: dict[int, Any] = field(default_factory=dict[int, Any])
    """Layer → [1, kv_head, row, d_head]."""
    values: dict[int, Any] = field(default_factory=dict[int, Any])
    rows: list[Rows] = field(default_factory=list[Rows])


def joined(rows: Iterable[Rows], n_keys: int) -> list[Rows]:
    """Rows of several forwards as one forward over all `n_keys` positions brings them."""
    found: dict[tuple[int, str], dict[tuple[str, ...], list[Rows]]] = {}
    for one in rows:
        found.setdefault((one.hook, one.part), {}).setdefault(one.sites, []).append(one)
    out: list[Rows] = []
    for groups in found.values():
        if len({site for sites in groups for site in sites}) == sum(map(len, groups)):
            out.extend(_along(pieces, n_keys) for pieces in groups.values())
            continue
        # Conditions chose other rows at each site, so that they were stacked otherwise.
        by_site: dict[str, list[Rows]] = {}
        for one in (one for pieces in groups.values() for one in pieces):
            for i, site in enumerate(one.sites):
                own = Rows(one.hook, (site,), one.positions, one.values[i : i + 1], one.part)
                by_site.setdefault(site, []).append(own)
        out.extend(_along(sorted(own, key=lambda one: one.positions), n_keys) for own in by_site.values())
    return out


def _along(pieces: list[Rows], n_keys: int) -> Rows:
    """One after the other along the row axis; attn_* [site, head, row, key]: with all keys, whenever their row ran."""
    first = pieces[0]
    positions = tuple(p for piece in pieces for p in piece.positions)
    if not first.sites[0].startswith(("attn_scores", "attn_probs")):
        return Rows(first.hook, first.sites, positions, np.concatenate([p.values for p in pieces], axis=1), first.part)
    fill = -np.inf if first.sites[0].startswith("attn_scores") else 0.0
    padded: list[Array] = [
        np.pad(p.values, [(0, 0)] * 3 + [(0, n_keys - p.values.shape[-1])], constant_values=fill) for p in pieces
    ]
    return Rows(first.hook, first.sites, positions, np.concatenate(padded, axis=2), first.part)
