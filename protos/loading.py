"""Values about loading a model, and about whether it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .model import ModelInfo

__all__ = ["HealthReport", "LoadProgress", "LoadRequest"]


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Load a model into a worker of its own."""

    model: str
    """Default model's name, local folder, or Hugging Face id."""
    id: str = ""
    """Name to serve it under; empty: derived from `model`."""
    backend: str = "auto"
    dtype: str = "auto"
    revision: str = ""
    quantize: str = ""
    """int8 or int4: hold a plain checkpoint's linear layers in so few bits; empty: as they are."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come."""

    stage: str
    done: int = 0
    total: int = 0
    """Bytes, where known; 0 otherwise."""
    info: ModelInfo | None = None
    """Set on the last message."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a probe found."""

    ready: bool
    detail: str
    models: Mapping[str, str] = field(default_factory=dict[str, str])
    """Model id → ready, loading, restarting or failed, with a reason."""
