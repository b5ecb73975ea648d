"""The house style: fonts, colours, token labels, titles. Figures are made without pyplot, so none is shown or kept open."""

from __future__ import annotations

import functools
import io
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, cast

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import FailedPrecondition, InvalidArgument

try:
    import matplotlib as mpl
    from matplotlib import font_manager
    from matplotlib.figure import Figure as BaseFigure
except ImportError as error:  # pragma: no cover - with the extra it is there
    raise FailedPrecondition("plots need matplotlib: pip install 'probewire[analysis]'") from error

__all__ = [
    "BLUE",
    "DIVERGING",
    "GREY",
    "INK",
    "LIGHT",
    "ORANGE",
    "PALETTE",
    "SEQUENTIAL",
    "STYLE",
    "Figure",
    "colorbar",
    "finished",
    "heading",
    "limits",
    "new",
    "numbers",
    "plain",
    "readable",
    "styled",
    "text_colour",
    "title",
    "token_axis",
]

P = ParamSpec("P")
Axes = Any
_mpl: Any = mpl  # annotated in part
_fonts_of: Any = font_manager

INK, GREY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE = "#0072b2", "#d55e00"
"""Told apart by readers who do not see red and green."""
PALETTE = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", GREY, INK)
"""Okabe and Ito's, for series."""
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"

MAX_TOKEN = 14
"""Letters of a token's label."""

STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
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
    "axes.prop_cycle": _mpl.cycler(color=list(PALETTE)),
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}

Floats = NDArray[np.float64]


class Figure(BaseFigure):
    """A matplotlib figure that notebooks show as it is, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        cast("Any", self).savefig(stream, format="png", dpi=STYLE["savefig.dpi"])
        return stream.getvalue()


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function whose figures have the house style; whoever calls it keeps their own settings."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def new(width: float, height: float, **options: Any) -> tuple[Figure, Axes]:
    """A figure of so many inches, and its axes; `options` as of `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, cast("Any", figure).subplots(**options)


def finished(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, written to `path` where there is one (png, svg or pdf by its ending)."""
    if path is not None:
        cast("Any", figure).savefig(path, dpi=STYLE["savefig.dpi"])
    return figure


def title(axes: Axes, what: str, how: str = "") -> None:
    """What is seen, in bold; how it was made, in grey beneath. Both are broken into lines that fit the figure."""
    room = axes.figure.get_figwidth() - 1.0
    above, below = (textwrap.wrap(text, max(20, int(room * n))) for text, n in ((what, 11.0), (how, 15.5)))
    if below:
        axes.set_title("\n".join(below), loc="left", color=GREY, fontsize=8.5, pad=8)
    if above:
        height = 8 + 14 * len(below)
        axes.annotate(
            "\n".join(above),
            (0, 1),
            (0, height),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=11,
            fontweight="bold",
        )


def heading(figure: Figure, what: str, how: str = "") -> None:
    """As `title`, over a figure of several axes: room for it is kept free above them."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    lines = [(line, 11.0, INK, "bold") for line in textwrap.wrap(what, max(20, int((width - 0.4) * 11.0)))]
    lines += [(line, 8.5, GREY, "normal") for line in textwrap.wrap(how, max(20, int((width - 0.4) * 15.5)))]
    top = height - 0.08
    for line, size, colour, weight in lines:
        cast("Any", figure).text(
            0.1 / width, top / height, plain(line), fontsize=size, color=colour, fontweight=weight, va="top"
        )
        top -= size / 72 * 1.35
    cast("Any", figure).get_layout_engine().set(rect=(0, 0, 1, top / height))


def readable(token: str, limit: int = MAX_TOKEN) -> str:
    """A token as a label: spaces and line ends visible, letters that the font lacks as \\u…, long ones cut inside."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") or "∅"
    shown = "".join(letter if _drawable(letter) else _escaped(letter) for letter in shown)
    if len(shown) > limit:
        shown = f"{shown[: limit - 5]}…{shown[-4:]}"
    return plain(shown)


def plain(text: str) -> str:
    """Text in which matplotlib finds no mathematics."""
    return text.replace("$", r"\$")


@functools.cache
def _drawable(letter: str) -> bool:
    return unicodedata.category(letter)[0] != "C" and all(font.get_char_index(ord(letter)) for font in _fonts())


@functools.cache
def _fonts() -> tuple[Any, ...]:
    """Those that labels are drawn in; matplotlib ships them."""
    return tuple(_fonts_of.get_font(_fonts_of.findfont(name)) for name in ("DejaVu Sans", "DejaVu Sans Mono"))


def _escaped(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


def token_axis(axes: Axes, tokens: Sequence[str], *, rotation: float = 90) -> None:
    """Tokens along the x axis."""
    ha = "center" if rotation == 90 else "right"
    labels = [readable(token) for token in tokens]
    size = 7.5 if len(labels) <= 60 else 5.5
    mode = "anchor" if rotation != 90 else "default"
    axes.set_xticks(range(len(labels)), labels, rotation=rotation, ha=ha, rotation_mode=mode)
    for label in axes.get_xticklabels():
        label.set(fontsize=size, family="DejaVu Sans Mono")
    axes.tick_params(axis="x", length=0)


def colorbar(figure: Figure, image: Any, axes: Axes, label: str) -> None:
    """A slim colour bar with its label, pointed where values lie beyond it."""
    values, low, high = image.get_array(), image.norm.vmin, image.norm.vmax
    slack = 1e-3 * (high - low)  # rounding is not worth a mark
    beyond = (bool((values < low - slack).any()), bool((values > high + slack).any()))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    bar = cast("Any", figure).colorbar(image, ax=axes, shrink=0.85, pad=0.01, aspect=30, extend=extend)
    bar.set_label(label)
    bar.outline.set_visible(False)


def limits(values: Floats, limit: float | None, sequential: str = SEQUENTIAL) -> dict[str, Any]:
    """`cmap`, `vmin`, `vmax` for an image: diverging about 0 where some values are negative, else sequential from 0.

    `limit` is the largest magnitude that the colours tell apart; None: that of the values. NaN is left blank.
    """
    found = values[np.isfinite(values)]
    if not found.size:
        raise InvalidArgument("there is no finite number to draw")
    bound = float(np.abs(found).max()) if limit is None else limit
    if limit is not None and not limit > 0:
        raise InvalidArgument(f"limit must be above 0, got {limit}")
    bound = bound or 1.0
    if (found < 0).any():
        return {"cmap": DIVERGING, "vmin": -bound, "vmax": bound}
    return {"cmap": sequential, "vmin": 0.0, "vmax": bound}


def text_colour(image: Any, value: float) -> str:
    """Black or white, whichever reads better on the colour of a value."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def numbers(values: Any, what: str, ndim: int) -> Floats:
    """Anything array-like as float64 with `ndim` axes; raises InvalidArgument otherwise."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{what} must be numbers: {error}") from None
    if array.ndim != ndim or not array.size:
        raise InvalidArgument(f"{what} must have {ndim} axes and something in them, got shape {list(array.shape)}")
    return array
