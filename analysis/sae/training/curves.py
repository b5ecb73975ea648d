"""How a training went: numbers every few steps, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ...plots.style import GREY, PALETTE, Figure, finished, plain, styled, title

__all__ = ["Curves", "draw_curves"]

Floats = NDArray[np.float64]
MAIN = ("loss", "l0", "explained_variance", "dead", "lr")


class Curves:
    """Points of one training. What could not be known at a point (the dead, before the first window) is NaN."""

    def __init__(self, points: Mapping[str, list[float | None]] | None = None) -> None:
        self._points: dict[str, list[float | None]] = {}
        if points is not None:
            self._points.update({name: list(values) for name, values in points.items()})

    def add(self, point: Mapping[str, float | None]) -> None:
        """One more point; all have the same names."""
        if self._points and set(point) != set(self._points):
            raise InvalidArgument(f"a point has {sorted(point)}, those before it {sorted(self._points)}")
        for name, value in point.items():
            known = value is not None and math.isfinite(value)
            self._points.setdefault(name, []).append(float(value) if known and value is not None else None)

    def __len__(self) -> int:
        return max(map(len, self._points.values()), default=0)

    def __getitem__(self, name: str) -> Floats:
        """[point]. Names: step, samples, loss, l0, explained_variance, dead, lr, and losses and coefficients by name."""
        if name not in self._points:
            raise InvalidArgument(f"no curve {name!r}; there are {', '.join(self._points) or 'none yet'}")
        return np.array([math.nan if value is None else value for value in self._points[name]], dtype=np.float64)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the curves."""
        return tuple(self._points)

    @property
    def losses(self) -> dict[str, Floats]:
        """The parts that the loss is the sum of."""
        return {name.removeprefix("loss/"): self[name] for name in self.names if name.startswith("loss/")}

    @property
    def last(self) -> dict[str, float | None]:
        """The last point; empty before the first."""
        return {name: values[-1] for name, values in self._points.items()}

    def to_dict(self) -> dict[str, list[float | None]]:
        """JSON-able: name → [point], null for NaN."""
        return {name: list(values) for name, values in self._points.items()}

    @classmethod
    def read(cls, path: str | Path) -> Curves:
        """From curves.json. Raises InvalidArgument for any other file."""
        try:
            found: object = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path} holds no training curves: {error}") from None
        points = cast("dict[str, list[float | None]]", found) if isinstance(found, dict) else {}
        if "step" not in points:
            raise InvalidArgument(f"{path} holds no training curves; give the curves.json of a run")
        return cls(points)

    def draw(self, *, what: str = "", how: str = "", path: str | Path | None = None) -> Figure:
        """Loss and its parts, L0, explained variance, dead share, learning rate."""
        return draw_curves({"": self}, what=what, how=how, path=path)


@styled
def draw_curves(
    curves: Mapping[str, Curves], *, what: str = "", how: str = "", path: str | Path | None = None
) -> Figure:
    """Loss, L0, explained variance, dead share and learning rate of one SAE, or of several in different colours.

    Of one alone the loss's parts are drawn too. `what`, `how` and `path` as in `heat_map`.
    Raises InvalidArgument when there is no point to draw.
    """
    if not curves or not all(len(one) for one in curves.values()):
        raise InvalidArgument("there is no point to draw; train first")
    figure = Figure(figsize=(10.5, 5.6), layout="constrained", facecolor="white")
    grid = [["loss", "loss", "explained_variance"], ["l0", "dead", "lr"]]
    axes: dict[str, Any] = cast("Any", figure).subplot_mosaic(grid)
    for index, (name, one) in enumerate(curves.items()):
        for key in MAIN:
            _line(axes[key], one, key, PALETTE[index % len(PALETTE)], name)
    if len(curves) == 1:
        [alone] = curves.values()
        _parts(axes["loss"], alone)
    handles, labels = axes["loss"].get_legend_handles_labels()
    cast("Any", figure).legend(handles, labels, loc="outside lower left", ncols=min(5, len(labels)))
    _dress(axes, curves)
    title(axes["loss"], what, how)
    return finished(figure, path)


def _line(axes: Any, curves: Curves, key: str, colour: str, label: str) -> None:
    # Nothing is clipped at 0, where many a curve lies.
    inside = key == "explained_variance"
    axes.plot(
        curves["step"], curves[key], color=colour, linewidth=1.4, label=plain(label) or None, zorder=3, clip_on=inside
    )


def _parts(axes: Any, curves: Curves) -> None:
    """The loss's parts under their names; a part that is 0 throughout has no place on a log axis."""
    axes.lines[0].set_label("loss")
    drawn = {name: values for name, values in curves.losses.items() if (values > 0).any()}
    for index, (name, values) in enumerate(drawn.items()):
        shown = np.where(values > 0, values, np.nan)
        colour = PALETTE[1 + index % (len(PALETTE) - 1)]
        axes.plot(curves["step"], shown, color=colour, linewidth=1.0, label=name.replace("_", " "))


_LABELS = {
    "loss": "loss (log)",
    "explained_variance": "explained variance of the batch",
    "l0": "L0: latents active a row",
    "dead": "dead latents",
    "lr": "learning rate",
}


def _dress(axes: Mapping[str, Any], curves: Mapping[str, Curves]) -> None:
    last = max(float(one["step"].max()) for one in curves.values())
    for key, one in axes.items():
        one.set(xlabel="step", ylabel=_LABELS[key], xlim=(0, last))
        one.grid(axis="y", zorder=0)
    if all((one["loss"] > 0).all() for one in curves.values()):
        axes["loss"].set_yscale("log")
    variance = np.concatenate([one["explained_variance"] for one in curves.values()])
    # The first steps explain less than nothing; what comes after them is what one looks for.
    lowest = float(np.nanmin(variance))
    later = np.concatenate([one["explained_variance"][len(one) // 2 :] for one in curves.values()])
    bottom = max(lowest - 0.05, min(-0.05, float(np.nanmin(later)) - 0.05))
    axes["explained_variance"].set_ylim(bottom, 1.0)
    if lowest < bottom:
        said = f"begins at {lowest:.3g}".replace("-", "−")
        place = {"xycoords": "axes fraction", "ha": "right", "color": GREY, "fontsize": 8}
        axes["explained_variance"].annotate(said, (0.98, 0.04), **place)
    axes["l0"].set_ylim(bottom=0)
    _dead_axis(axes["dead"], np.concatenate([one["dead"] for one in curves.values()]))
    axes["lr"].set_ylim(bottom=0)
    axes["lr"].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))


def _dead_axis(axes: Any, dead: Floats) -> None:
    known = dead[np.isfinite(dead)]
    if not known.size:
        said = "not known: shorter than\nthe dead window"
        axes.annotate(said, (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
        axes.set_yticks([])
        return
    axes.set_ylim(0, max(0.05, min(1.0, 1.1 * float(known.max()))))
    axes.yaxis.set_major_formatter(_percent)


def _percent(value: float, _: int) -> str:
    return f"{100 * value:.3g} %"
