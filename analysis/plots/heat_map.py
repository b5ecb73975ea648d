"""A number for every layer and position, under the prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...clients import NamedArray
from ...protos.errors import InvalidArgument
from .style import Figure, colorbar, finished, limits, new, numbers, styled, title, token_axis

__all__ = ["heat_map", "layer_axis"]


@styled
def heat_map(
    values: Any,
    tokens: Sequence[str] = (),
    *,
    layers: Sequence[int] | None = None,
    what: str = "",
    how: str = "",
    label: str = "",
    y_label: str = "layer",
    x_label: str = "",
    limit: float | None = None,
    path: str | Path | None = None,
) -> Figure:
    """`values` [layer, position] as an image, layer 0 at the bottom; negative numbers make it diverge about 0.

    `what` is the title, `how` the line beneath; `label` names the colours, `limit` is where they end. NaN is left blank.
    A NamedArray with the axes layer and position may have them in either order. Raises InvalidArgument when tokens or
    layers do not match the values' shape.
    """
    values, layers = _oriented(values, layers)
    grid = numbers(values, "heat map values", 2)
    n_layers, n_positions = grid.shape
    if tokens and len(tokens) != n_positions:
        raise InvalidArgument(f"{len(tokens)} tokens for {n_positions} positions; values are [layer, position]")
    if layers is not None and len(layers) != n_layers:
        raise InvalidArgument(f"{len(layers)} layers named for {n_layers} rows; values are [layer, position]")
    figure, axes = new(min(max(5.0, 2.2 + 0.36 * n_positions), 16.0), min(max(2.6, 1.6 + 0.15 * n_layers), 12.0))
    image = axes.imshow(grid, origin="lower", aspect="auto", interpolation="nearest", **limits(grid, limit))
    if tokens:
        token_axis(axes, tokens)
    layer_axis(axes, list(range(n_layers)) if layers is None else list(layers))
    axes.set(xlabel=x_label or ("" if tokens else "position"), ylabel=y_label)
    title(axes, what, how)
    colorbar(figure, image, axes, label)
    return finished(figure, path)


def _oriented(values: Any, layers: Sequence[int] | None) -> tuple[Any, Sequence[int] | None]:
    """A NamedArray as [layer, position], with its own layers; anything else as it is."""
    if not isinstance(values, NamedArray) or "layer" not in values.axes or len(values.axes) != 2:
        return values, layers
    other = next(name for name in values.dims if name != "layer")
    return values.transpose("layer", other).values, values.axes["layer"] if layers is None else layers


def layer_axis(axes: Any, layers: list[int]) -> None:
    """At most a dozen labels, the last layer among them."""
    step = max(1, -(-len(layers) // 12))
    shown = list(range(0, len(layers), step))
    if len(layers) - 1 - shown[-1] >= step / 2:
        shown.append(len(layers) - 1)
    axes.set_yticks(shown, [str(layers[index]) for index in shown])
