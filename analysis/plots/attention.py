"""Where attention heads look: for every head, queries down, keys across, under the prompt's tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...protos.errors import InvalidArgument
from .style import GREY, LIGHT, Figure, Floats, colorbar, finished, heading, limits, new, numbers, readable, styled

__all__ = ["attention"]

MAX_COLUMNS = 4
MAX_HEADS = 64
CELL, LEAST, MOST = 0.15, 1.5, 5.5
"""Inches: of a key, and of a head's picture at least and at most."""
LABELLED = 48
"""Tokens that have each a label; of longer prompts every nth has one."""


@styled
def attention(
    patterns: Any,
    tokens: Sequence[str],
    *,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    columns: int | None = None,
    what: str = "",
    how: str = "",
    label: str = "attention",
    limit: float | None = None,
    path: str | Path | None = None,
) -> Figure:
    """`patterns` [head, query, key] (attn_probs or attn_scores of a layer), a picture a head, all on one scale.

    `tokens`: one a key. `heads`: the numbers of those to show, all by default. `positions`: of the queries, where not
    every one was captured. Keys that a query cannot see are left blank. `limit` is where the colours end, `columns` the
    pictures in a row; `what`, `how`, `label` and `path` as in `heat_map`. Raises InvalidArgument for shapes that do not fit.
    """
    found = numbers(patterns, "attention patterns", 3)
    n_heads, n_queries, n_keys = found.shape
    if len(tokens) != n_keys:
        raise InvalidArgument(f"{len(tokens)} tokens for {n_keys} keys; patterns are [head, query, key]")
    shown = _chosen(list(range(n_heads)) if heads is None else list(heads), n_heads)
    rows = _rows(positions, n_queries, n_keys)
    values = _visible(found[shown], rows)
    across = _columns(len(shown)) if columns is None else max(1, min(columns, len(shown)))
    down = math.ceil(len(shown) / across)
    wide, tall = (min(max(LEAST, CELL * n), MOST) for n in (n_keys, n_queries))
    size = (1.9 + across * (wide + 0.1), 1.6 + down * (tall + 0.35))
    figure, grid = new(*size, nrows=down, ncols=across, squeeze=False)
    scale = limits(values, limit, "Blues")
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    images: list[Any] = []
    for place, (head, pattern) in enumerate(zip(shown, values, strict=True)):
        axes = grid.flat[place]
        images.append(axes.imshow(np.ma.masked_invalid(pattern), aspect="auto", interpolation="nearest", **scale))
        axes.set_facecolor(LIGHT)
        axes.set_title(f"head {head}", loc="right", fontsize=8, color=GREY, pad=2)
        axes.tick_params(length=0)
        # Labels stand at the left, and under the lowest of each column.
        _labels(axes, "x", tokens if place + across >= len(shown) else ())
        _labels(axes, "y", [tokens[row] for row in rows] if place % across == 0 else ())
    grid[-1][0].set(xlabel="key", ylabel="query")
    heading(figure, what, how)
    colorbar(figure, images[0], grid, label)
    return finished(figure, path)


def _columns(n: int) -> int:
    """As many as leave the fewest places empty."""
    return n if n <= MAX_COLUMNS else min((MAX_COLUMNS, MAX_COLUMNS - 1), key=lambda columns: -n % columns)


def _chosen(heads: list[int], n_heads: int) -> list[int]:
    wrong = [head for head in heads if not 0 <= head < n_heads]
    if wrong or not heads:
        raise InvalidArgument(f"heads {wrong or heads} given; allowed: 0 … {n_heads - 1}, at least one")
    if len(heads) > MAX_HEADS:
        raise InvalidArgument(f"{len(heads)} heads are too many for one picture; choose at most {MAX_HEADS}: heads=[…]")
    return heads


def _rows(positions: Sequence[int] | None, n_queries: int, n_keys: int) -> list[int]:
    """The position of each query."""
    rows = list(range(n_queries)) if positions is None else [int(position) for position in positions]
    if len(rows) != n_queries or (positions is None and n_queries != n_keys):
        raise InvalidArgument(
            f"{n_queries} queries for {n_keys} keys, and {len(rows)} positions; say where the queries are: "
            'positions=run.positions("attn_probs.5")'
        )
    if any(not 0 <= row < n_keys for row in rows):
        raise InvalidArgument(f"positions {rows} are not all among {n_keys} keys")
    return rows


def _visible(values: Floats, rows: Sequence[int]) -> Floats:
    """Blank where a key comes after its query, or was masked (−inf)."""
    blank = ~np.isfinite(values)
    for query, position in enumerate(rows):
        blank[:, query, position + 1 :] = True
    return np.where(blank, np.nan, values)


def _labels(axes: Any, axis: str, tokens: Sequence[str]) -> None:
    step = max(1, math.ceil(len(tokens) / LABELLED))
    places = range(0, len(tokens), step)
    set_ticks = axes.set_xticks if axis == "x" else axes.set_yticks
    options: dict[str, Any] = {"rotation": 90} if axis == "x" else {}
    set_ticks(places, [readable(tokens[place], 10) for place in places], **options)
    for tick in axes.get_xticklabels() if axis == "x" else axes.get_yticklabels():
        tick.set(fontsize=6.5 if len(places) <= 30 else 5.0, family="DejaVu Sans Mono")
