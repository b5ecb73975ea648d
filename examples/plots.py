"""Where the examples' pictures go. Their style is the package's own: probewire.analysis.plots.style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from probewire.analysis.plots import Figure
from probewire.analysis.plots.style import STYLE, finished

__all__ = ["OUTPUT", "save"]

OUTPUT = Path(__file__).parent / "output"

_mpl: Any = mpl  # annotated in part
_mpl.rcParams.update(STYLE)  # for examples that draw by hand; the package's own figures need no setting


def save(figure: Figure, name: str) -> Path:
    """Write `examples/output/<name>.png` and say so."""
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / f"{name}.png"
    finished(figure, path)
    print(f"\nplot: {path}")
    return path
