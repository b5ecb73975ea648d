"""What each layer would say next at each position: words in cells, coloured by probability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...protos.errors import InvalidArgument
from .heat_map import layer_axis
from .style import (
    SEQUENTIAL,
    Figure,
    colorbar,
    finished,
    new,
    numbers,
    readable,
    styled,
    text_colour,
    title,
    token_axis,
)

__all__ = ["lens_table"]

MAX_WORD = 11


@styled
def lens_table(
    words: Any,
    probabilities: Any,
    tokens: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    following: Sequence[str] = (),
    what: str = "",
    how: str = "",
    label: str = "probability",
    path: str | Path | None = None,
) -> Figure:
    """`words` [layer, position] in cells coloured by `probabilities` (0 … 1) of the same shape, layer 0 at the bottom.

    `tokens` label the positions; with `following`, each label is "token→the one that follows". `what`, `how` and `path`
    as in `heat_map`. Raises InvalidArgument when the shapes do not match.
    """
    chances = numbers(probabilities, "lens probabilities", 2)
    cells = np.asarray(words, dtype=object)
    n_layers, n_positions = chances.shape
    if cells.shape != chances.shape or len(tokens) != n_positions:
        raise InvalidArgument(
            f"words {list(cells.shape)}, probabilities {list(chances.shape)} and {len(tokens)} tokens do not match; "
            "the first two are [layer, position], with a token a position"
        )
    figure, axes = new(min(max(4.5, 1.6 + 0.66 * n_positions), 20.0), min(max(2.4, 1.7 + 0.2 * n_layers), 16.0))
    image = axes.imshow(chances, origin="lower", aspect="auto", cmap=SEQUENTIAL, vmin=0.0, vmax=1.0)
    for (layer, position), chance in np.ndenumerate(chances):
        word = readable(str(cells[layer, position]), MAX_WORD)
        colour = text_colour(image, chance)
        axes.text(position, layer, word, ha="center", va="center", fontsize=6.2, color=colour, clip_on=True)
    if following:
        token_axis(axes, [f"{a}→{b}" for a, b in zip(tokens, following, strict=True)], rotation=30)
    else:
        token_axis(axes, tokens, rotation=30)
    layer_axis(axes, list(range(n_layers)) if layers is None else list(layers))
    axes.set_ylabel("layer whose stream is read")
    title(axes, what, how)
    colorbar(figure, image, axes, label)
    return finished(figure, path)
