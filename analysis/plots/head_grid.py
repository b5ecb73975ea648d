"""A number for every attention head, the strongest named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .heat_map import layer_axis
from .style import LIGHT, Figure, colorbar, finished, limits, new, numbers, styled, text_colour, title

__all__ = ["head_grid"]


@styled
def head_grid(
    values: Any,
    *,
    what: str = "",
    how: str = "",
    label: str = "",
    limit: float | None = None,
    top: int = 5,
    path: str | Path | None = None,
) -> Figure:
    """`values` [layer, head] as an image, layer 0 at the bottom; the `top` largest magnitudes are written out.

    `what`, `how`, `label`, `limit` and `path` as in `heat_map`. Raises InvalidArgument for values that are no grid.
    """
    grid = numbers(values, "head grid values", 2)
    n_layers, n_heads = grid.shape
    figure, axes = new(min(max(3.6, 1.9 + 0.34 * n_heads), 14.0), min(max(2.6, 1.4 + 0.17 * n_layers), 12.0))
    image = axes.imshow(grid, origin="lower", aspect="auto", interpolation="nearest", **limits(grid, limit, "Blues"))
    axes.set_xticks(range(n_heads) if n_heads <= 32 else range(0, n_heads, 4))
    layer_axis(axes, list(range(n_layers)))
    axes.set(xlabel="head", ylabel="layer")
    axes.set_xticks(np.arange(n_heads + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n_layers + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=LIGHT, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    _name_top(axes, image, grid, top)
    title(axes, what, how)
    colorbar(figure, image, axes, label)
    return finished(figure, path)


def _name_top(axes: Any, image: Any, grid: Any, top: int) -> None:
    strength = np.nan_to_num(np.abs(grid))
    for flat in np.argsort(-strength, axis=None)[:top].tolist():
        layer, head = divmod(flat, grid.shape[1])
        if strength[layer, head]:
            colour = text_colour(image, grid[layer, head])
            axes.text(head, layer, f"{grid[layer, head]:.2g}", ha="center", va="center", fontsize=6, color=colour)
