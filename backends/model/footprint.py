"""How much memory a model will take, known before it is loaded, and how much there is."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...protos.errors import FailedPrecondition
from ...protos.tensors import numpy_dtype
from ..checkpoints.quantised.at_load import bytes_of
from .limits import Limits
from .recurrent import keeps_keys, state_size
from .sites import dims_of
from .weights import CheckpointWeights

__all__ = ["Footprint", "check_free", "check_room", "footprint", "free_bytes"]

HEADROOM = 0.1
"""Of weights and cache together: activations, buffers, the allocator."""
_GPT2_NAMES = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes."""

    weights: int
    cache: int
    """Keys and values of all positions."""
    state: int = 0
    """What recurrent layers hold, of all sequences."""

    @property
    def total(self) -> int:
        """With headroom."""
        return round((self.weights + self.cache + self.state) * (1 + HEADROOM))


def footprint(folder: Path, dtype: str, limits: Limits, backend: str = "", quantize: str = "") -> Footprint:
    """What a checkpoint takes when a backend has loaded it as `dtype` ("auto": as it is stored).

    `quantize`: to int8 or int4, before they come there.
    """
    checkpoint = CheckpointWeights(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    itemsize = numpy_dtype(_dtype(checkpoint, config) if dtype == "auto" else dtype).itemsize
    weights = _held(checkpoint, None if dtype == "auto" else itemsize, itemsize, backend, quantize)
    inner: Any = config.get("text_config")
    text: dict[str, Any] = {**config, **inner} if checkpoint.tower is not None and isinstance(inner, dict) else config
    state = limits.n_slots * state_size(checkpoint.names(), text).nbytes(itemsize)
    if checkpoint.tower is not None or state:
        return Footprint(weights, _kept(checkpoint) * limits.cache_tokens * itemsize, state)
    text |= {ours: text[theirs] for theirs, ours in _GPT2_NAMES.items() if theirs in text}
    try:
        dims = dims_of(SimpleNamespace(**text))
    except (AttributeError, TypeError, ZeroDivisionError):  # a family that we do not know: it gets no cache of ours
        return Footprint(weights, 0)
    return Footprint(weights, 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * limits.cache_tokens * itemsize)


def _kept(checkpoint: CheckpointWeights) -> int:
    """Numbers that a position takes in the cache, by the projections' shapes: a wrapper's config leaves out what is usual, and
    that of recurrent layers does not say which they are."""
    shapes = checkpoint.names()
    return sum(shape[0] for name, shape in shapes.items() if keeps_keys(name, shapes))


def _dtype(checkpoint: CheckpointWeights, config: dict[str, Any]) -> str:
    """What "auto" means: of a checkpoint that mlx-lm packed, what its scales are, as its config keeps that of another."""
    if checkpoint.scheme is not None and checkpoint.scheme.method == "mlx":
        return checkpoint.float_dtype()
    named = (part.get(name) for part in (config, config.get("text_config") or {}) for name in ("dtype", "torch_dtype"))
    return next((str(name) for name in named if name), "float32")


def _held(checkpoint: CheckpointWeights, asked: int | None, itemsize: int, backend: str, quantize: str) -> int:
    """Bytes of the weights in memory: codes stay codes only where the backend computes with them.

    `asked`: bytes of a number; None: each as it is stored, and `itemsize` where it is stored as no number.
    """
    scheme = checkpoint.scheme
    if quantize and scheme is None:
        return sum(bytes_of(name, shape, quantize, itemsize) for name, shape in checkpoint.names().items())
    if scheme is None or scheme.method == "mlx" or (backend == "mlx" and scheme.method == "mxfp4"):
        return checkpoint.nbytes(asked)
    return checkpoint.nbytes(itemsize, unpacked=True)


def check_room(
    folder: Path,
    name: str,
    dtype: str,
    limits: Limits,
    free: int | None,
    backend: str = "",
    quantize: str = "",
) -> None:
    """Raise FailedPrecondition, with figures, when a model will not fit in `free` bytes (None: not known)."""
    need = footprint(folder, dtype, limits, backend, quantize)
    if free is not None and need.total > free:
        state = f", recurrent state of {limits.n_slots:,} sequences {_gib(need.state)}" if need.state else ""
        raise FailedPrecondition(
            f"loading {name!r} takes about {_gib(need.total)} (weights {_gib(need.weights)}, KV cache of "
            f"{limits.cache_tokens:,} positions {_gib(need.cache)}{state}, and a tenth more), and {_gib(free)} are free; "
            f"unload another model, choose a smaller dtype, or lower --cache-tokens{' or --slots' if need.state else ''}"
        )


def check_free(n_bytes: float, what: str) -> None:
    """Raise FailedPrecondition when something takes more main memory than there is."""
    free = free_bytes()
    if free is not None and n_bytes > free:
        raise FailedPrecondition(
            f"{what} takes about {_gib(round(n_bytes))} of memory, and {_gib(free)} are free; unload a model, or use a "
            "narrower dtype"
        )


def free_bytes() -> int | None:
    """Main memory that can be had, the container's limit included; None where the system does not say."""
    found = [value for value in (_available(), _cgroup_left()) if value is not None]
    return min(found, default=None)


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return None


def _cgroup_left() -> int | None:
    """The tightest bound of the control groups (v2) around this process: a container's, or a systemd unit's."""
    own = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = OWN_CGROUP.read_text().splitlines()
        own = next(line for line in lines if line.startswith("0::")).removeprefix("0::").strip("/")
    left: list[int] = []
    for group in (CGROUP / own, *(parent for parent in (CGROUP / own).parents if parent.is_relative_to(CGROUP))):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            limit = int((group / "memory.max").read_text())
            left.append(max(0, limit - int((group / "memory.current").read_text())))
    return min(left, default=None)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
