"""Weights read straight from the checkpoint's safetensors: named and shaped as there, whatever the backend did to them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import safe_open

from ..protos.errors import NotFound
from ..protos.tensors import Array, numpy_dtype

__all__ = ["CheckpointWeights"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
}


class CheckpointWeights:
    """The tensors of one checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}
        for path in _files(folder):
            header_bytes, header = _header(path)
            for name, entry in header.items():
                if name != "__metadata__":
                    start = 8 + header_bytes + entry["data_offsets"][0]
                    self._entries[name] = (path, entry["dtype"], tuple(entry["shape"]), start)

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's name and shape."""
        return {name: shape for name, (_, _, shape, _) in self._entries.items()}

    def nbytes(self, itemsize: int | None = None) -> int:
        """Bytes of all of them as stored, or with floats of `itemsize` bytes."""
        total = 0
        for _, dtype, shape, _ in self._entries.values():
            stored = numpy_dtype(_DTYPES[dtype]).itemsize if dtype in _DTYPES else 1  # eight-bit floats and the like
            floats = dtype.startswith(("F", "BF"))
            total += math.prod(shape) * (itemsize if floats and itemsize is not None else stored)
        return total

    def get(self, name: str) -> Array:
        """One weight. Raises NotFound with a few names that are like it."""
        if name not in self._entries:
            near = [n for n in self._entries if n.rsplit(".", 2)[-2:] == name.rsplit(".", 2)[-2:]]
            some = ", ".join((near or list(self._entries))[:4])
            raise NotFound(f"no weight {name!r} in the checkpoint; for example {some}")
        path, dtype, shape, start = self._entries[name]
        if dtype not in _DTYPES:
            with cast("Any", safe_open)(path, framework="np") as file:
                return file.get_tensor(name)
        kind = numpy_dtype(_DTYPES[dtype])
        return np.fromfile(path, dtype=kind, count=int(np.prod(shape)), offset=start).reshape(shape)


def _files(folder: Path) -> list[Path]:
    """The files that the index names, or else every safetensors file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def _header(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return size, json.loads(file.read(size))
