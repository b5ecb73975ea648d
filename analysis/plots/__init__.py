"""Figures in one house style."""

from .attention import attention
from .bars import score_bars
from .faithfulness import faithfulness_curves
from .head_grid import head_grid
from .heat_map import heat_map
from .layer_curves import layer_curves
from .lens_table import lens_table
from .style import Figure

__all__ = [
    "Figure",
    "attention",
    "faithfulness_curves",
    "head_grid",
    "heat_map",
    "layer_curves",
    "lens_table",
    "score_bars",
]
