"""A model that runs, is read and is edited, on one of several array libraries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..protos.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from .base import Backend
    from .limits import Limits

__all__ = ["BACKENDS", "load_backend"]

BACKENDS = ("torch", "mlx")


def load_backend(
    name: str,
    folder: Path,
    *,
    model_id: str,
    limits: Limits,
    model_hash: str = "",
    dtype: str = "auto",
    device: str = "auto",
) -> Backend:
    """Load a checkpoint folder. Raises FailedPrecondition when the backend's extra is not installed."""
    if name not in BACKENDS:
        raise InvalidArgument(f"unknown backend {name!r}; allowed: {', '.join(BACKENDS)}")
    try:
        if name == "torch":
            from .torch.backend import TorchBackend as Chosen
        else:
            from .mlx.backend import MlxBackend as Chosen
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"backend {name} needs {error.name}, which is not installed; pip install 'probewire[{name}]'"
        ) from None
    return Chosen(folder, model_id=model_id, model_hash=model_hash, dtype=dtype, device=device, limits=limits)
