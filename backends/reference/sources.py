"""The rows that `replace` takes from somewhere else: one a chosen position, in order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...protos.edits import FromInput
from ...protos.errors import InvalidArgument
from ...protos.sites import ATTENTION_SITES, Site
from ...protos.spec import Where
from ...protos.tensors import Array
from .edits import MASKED

__all__ = ["given_rows", "input_rows", "named_positions", "rows_first", "with_keys"]


def rows_first(site: Site, value: Array) -> Array:
    """The site's value with its row axis in front: [head, query, key] → [query, head, key]. Its own inverse."""
    return np.swapaxes(value, 0, 1) if site.name in ATTENTION_SITES else value


def given_rows(value: Array, site: Site, index: int, n_sites: int, positions: Sequence[int]) -> Array:
    """Rows of an inline tensor or a stored capture: the site's own axes, or those of each of `n_sites` sites.

    Raises InvalidArgument unless there is one row a position.
    """
    if value.ndim == len(site.axes) + 1 and len(value) == n_sites:
        value = value[index]
    if value.ndim != len(site.axes):
        raise InvalidArgument(f"replace brings a tensor of shape {list(value.shape)}, {site} has axes {site.axes}")
    rows = rows_first(site, value)
    _check_number(len(rows), positions)
    return rows


def named_positions(where: Where, positions: Sequence[int], prompt_length: int) -> list[int]:
    """Chosen positions as the hook writes them: negative where it counts them from the prompt's end."""

    def from_end(position: int) -> bool:
        if where.positions is not None:
            return position - prompt_length in where.positions
        for span in where.spans or ():
            start = span.start if span.start >= 0 else span.start + prompt_length
            stop = math.inf if span.stop is None else span.stop if span.stop >= 0 else span.stop + prompt_length
            if start <= position < stop:
                return span.start < 0 and position < prompt_length
        return False

    return [position - prompt_length if from_end(position) else position for position in positions]


def input_rows(source: FromInput, value: Array, site: Site, positions: Sequence[int]) -> Array:
    """Rows of another input's final value at the site. Raises InvalidArgument unless there is one a position.

    `positions`: the hook's own, as it names them; without positions of the source's they hold on either side.
    """
    rows = rows_first(site, value)
    n = len(rows)
    wanted = [p + n if p < 0 else p for p in (positions if source.positions is None else source.positions)]
    if outside := [p for p in wanted if not 0 <= p < n]:
        raise InvalidArgument(f"positions {outside} are outside input {source.input!r}, which has {n} tokens")
    _check_number(len(wanted), positions)
    return rows[np.array(wanted, dtype=np.int64)]


def _check_number(n_rows: int, positions: Sequence[int]) -> None:
    if n_rows != len(positions):
        raise InvalidArgument(
            f"the source has {n_rows} rows, the hook chooses {len(positions)} positions; they pair in order"
        )


def with_keys(rows: Array, site: Site, visible: Array) -> Array:
    """Attention rows [row, head, key] brought to this sequence's keys; what lies beyond them is never read.

    Raises InvalidArgument where a query sees a key that its source row does not have.
    """
    n_keys = visible.shape[-1]
    if visible[:, rows.shape[-1] :].any():
        raise InvalidArgument(f"replace brings {rows.shape[-1]} keys; a query it reaches at {site} sees more")
    held = rows[..., :n_keys]
    missing = [(0, 0), (0, 0), (0, n_keys - held.shape[-1])]
    return np.pad(held, missing, constant_values=MASKED[site.name])
