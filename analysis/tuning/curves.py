"""The losses of a run, step by step: as numbers, and as a picture on a log axis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TuneCurves", "draw_curves"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TuneCurves:
    """`curves["task"]`: [step]; "loss" is the weighted sum that was minimised, the others are as they are."""

    points: tuple[Mapping[str, float], ...]

    def __getitem__(self, name: str) -> Floats:
        return np.array([point.get(name, np.nan) for point in self.points])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the losses."""
        return tuple(dict.fromkeys(name for point in self.points for name in point if name != "step"))

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps([dict(point) for point in self.points], allow_nan=False))

    @classmethod
    def load(cls, path: Path) -> TuneCurves:
        """What `save` wrote."""
        return cls(tuple(json.loads(path.read_text())))


def draw_curves(
    curves: Mapping[str, Sequence[float] | Floats], path: Path | None = None, *, title: str, subtitle: str
) -> Any:
    """A line a loss over the steps, on a log axis. Values that are not above 0 have no place on it and are left out."""  # fmt: skip
    # Late: matplotlib is of another extra than tuning.
    from ..plots import style

    def draw() -> Any:
        figure, axes = style.new(6.4, 3.4)
        for colour, (name, values) in zip(style.PALETTE * 4, curves.items(), strict=False):
            found = np.asarray(values, dtype=np.float64)
            steps = np.arange(1, len(found) + 1)
            shown = np.isfinite(found) & (found > 0)
            axes.plot(steps[shown], found[shown], color=colour, label=name, linewidth=1.4)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(visible=True, axis="y")
        axes.legend(loc="best")
        style.title(axes, title, subtitle)
        return style.finished(figure, path)

    return style.styled(draw)()
