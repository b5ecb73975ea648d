"""Whatever result a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .archive import kind_of
from .results import Result
from .sweep import Sweep

__all__ = ["load"]


def load(path: str | Path) -> Any:
    """The Run, Generation, Gradients or Sweep that was saved. Raises NotFound without a file, InvalidArgument for others."""
    return Sweep.load(path) if kind_of(path) == "Sweep" else Result.load(path)
