"""How far a checkpoint is on its way here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Progress", "Report", "Stage", "ignore_progress"]

Stage = Literal["wait", "download", "verify", "dequantise", "convert", "write", "done"]
"""`wait`: another process is fetching or converting the same model."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of one stage."""

    stage: Stage
    done: int
    """Bytes."""
    total: int | None
    """Bytes; None where it is not known."""


Report = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """The report of a caller who asked for none."""
