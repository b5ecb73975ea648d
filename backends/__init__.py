"""A model that runs, is read and is edited, on one of several array libraries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..protos.errors import FailedPrecondition, InvalidArgument, ProbewireError

if TYPE_CHECKING:
    from .base import Backend
    from .limits import Limits

__all__ = ["BACKENDS", "free_bytes", "load_backend"]

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
    check: bool = True,
) -> Backend:
    """Load a checkpoint folder and let it check itself; generation is refused (`generate_note`) where it fails.

    Raises FailedPrecondition when the backend's extra is not installed.
    """
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
    try:
        backend = Chosen(folder, model_id=model_id, model_hash=model_hash, dtype=dtype, device=device, limits=limits)
    except ProbewireError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # what the libraries say of a bad checkpoint
        raise InvalidArgument(f"the checkpoint in {folder} cannot be loaded on {name}: {error}") from error
    fault = _fault(name, folder, backend, device) if check and backend.engine is not None else ""
    if fault and backend.engine is not None:
        backend.engine.close()
        backend.engine = None
        backend.info = replace(backend.info, generate=False, generate_note=f"{fault}; use runs")
    return backend


def free_bytes(name: str, device: str) -> int | None:
    """Memory that a model on a device could have now; None where nobody knows."""
    from .footprint import free_bytes as main_memory

    if name == "torch":
        from .torch.load import cuda_free_bytes

        on_gpu = cuda_free_bytes(device)
        if on_gpu is not None:
            return on_gpu
    return main_memory()


def _fault(name: str, folder: Path, backend: Backend, device: str) -> str:
    """What the self-check found, or empty."""
    from .limits import Limits
    from .selfcheck import engine_fault, has_window, window_fault

    fault = engine_fault(backend)
    if fault or not has_window(json.loads((folder / "config.json").read_text())):
        return fault
    small = Limits(n_slots=2, context_tokens=64, cache_tokens=128, chunk_tokens=8)
    return window_fault(
        lambda tiny: load_backend(name, tiny, model_id="check", limits=small, device=device, check=False),
        folder,
        backend.weight_names(),
    )
