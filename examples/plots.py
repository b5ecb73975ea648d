"""The house style of the examples' plots, and where they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BLUE", "DIVERGING", "GREY", "ORANGE", "SEQUENTIAL", "annotate_tokens", "colorbar", "new", "save", "title"]

Figure = Any
Axes = Any
_plt: Any = plt  # matplotlib is annotated in part

OUTPUT = Path(__file__).parent / "output"

INK, GREY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE = "#0072b2", "#d55e00"
"""Told apart by readers who do not see red and green."""
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"

STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.grid": False,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}


def new(width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes."""
    _plt.rcParams.update(STYLE)
    return _plt.subplots(figsize=(width, height), **options)


def title(axes: Axes, what: str, how: str) -> None:
    """What is seen, in bold; how it was made, in grey beneath."""
    axes.set_title(f"{how}\n", color=GREY, fontsize=8.5, linespacing=0.3)
    axes.annotate(
        what, (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points", fontsize=11, fontweight="bold"
    )


def annotate_tokens(axes: Axes, tokens: Sequence[str], *, rotation: float = 90) -> None:
    """Tokens along the x axis, spaces and line ends visible."""
    labels = [token.replace("\n", "⏎").replace(" ", "·") for token in tokens]
    ha = "center" if rotation == 90 else "right"
    axes.set_xticks(range(len(labels)), labels, rotation=rotation, ha=ha, fontsize=7.5, family="DejaVu Sans Mono")
    axes.tick_params(length=0)


def colorbar(figure: Figure, image: Any, axes: Axes, label: str) -> None:
    """A slim colour bar with its label."""
    bar = figure.colorbar(image, ax=axes, label=label, shrink=0.85, pad=0.01, aspect=30)
    bar.outline.set_visible(False)


def save(figure: Figure, name: str) -> Path:
    """Write `examples/output/<name>.png` and say so."""
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / f"{name}.png"
    figure.savefig(path)
    _plt.close(figure)
    print(f"\nplot: {path}")
    return path
