"""Weights read straight from the checkpoint's safetensors: named and shaped as there, whatever the backend did to them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import NotFound, Unsupported
from ...protos.tensors import Array, numpy_dtype
from ..checkpoints.tower import Tower, tower_of
from ..checkpoints.weight_file import BITS

__all__ = ["CheckpointWeights", "has_own_head"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
}
"""What weights are stored as; in other dtypes stand codes of quantised ones."""


class CheckpointWeights:
    """The tensors of one checkpoint folder; of one that also sees or hears, the text model's, under its own names.

    Raises InvalidArgument for such a one without a text model, or with weights that belong to nothing known.
    """

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}
        for path in _files(folder):
            header_bytes, header = _header(path)
            for name, entry in header.items():
                if name != "__metadata__":
                    start = 8 + header_bytes + entry["data_offsets"][0]
                    self._entries[name] = (path, entry["dtype"], tuple(entry["shape"]), start)
        config = folder / "config.json"
        self.tower: Tower | None = tower_of(json.loads(config.read_text()), self._entries) if config.is_file() else None
        """What the text model of a wrapper is; None for a text model."""
        if self.tower is not None:
            self._entries = {new: self._entries[old] for old, new in self.tower.names.items()}

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's name and shape."""
        return {name: shape for name, (_, _, shape, _) in self._entries.items()}

    def nbytes(self, itemsize: int | None = None) -> int:
        """Bytes of all of them as stored, or with floats of `itemsize` bytes."""
        total = 0
        for _, dtype, shape, _ in self._entries.values():
            bits = BITS.get(dtype, 8)
            if itemsize is not None and dtype in ("F64", "F32", "F16", "BF16"):
                bits = 8 * itemsize
            total += math.prod(shape) * bits // 8
        return total

    def get(self, name: str) -> Array:
        """One weight. Raises NotFound with a few names that are like it, Unsupported for one that is stored packed."""
        if name not in self._entries:
            near = [n for n in self._entries if n.rsplit(".", 2)[-2:] == name.rsplit(".", 2)[-2:]]
            some = ", ".join((near or list(self._entries))[:4])
            raise NotFound(f"no weight {name!r} in the checkpoint; for example {some}")
        path, dtype, shape, start = self._entries[name]
        if dtype not in _DTYPES:
            raise Unsupported(
                f"weight {name!r} is stored as packed codes ({dtype}, {list(shape)}), which are not its values; read the "
                "weights of the checkpoint that was quantised, or the model's activations"
            )
        kind = numpy_dtype(_DTYPES[dtype])
        return np.fromfile(path, dtype=kind, count=int(np.prod(shape)), offset=start).reshape(shape)

    def stored(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one weight as the file has them, mapped and not read."""
        path, dtype, shape, start = self._entries[name]
        return np.memmap(path, np.uint8, "r", start, (math.prod(shape) * BITS.get(dtype, 8) // 8,))


def has_own_head(folder: Path) -> bool:
    """Whether the files hold an output matrix that is not the embedding, whatever the config says of tying the two."""
    weights = CheckpointWeights(folder)
    embeddings = [name for name in weights.names() if name.endswith(("embed_tokens.weight", "wte.weight"))]
    if "lm_head.weight" not in weights.names() or len(embeddings) != 1:
        return "lm_head.weight" in weights.names()
    return not np.array_equal(weights.stored("lm_head.weight"), weights.stored(embeddings[0]))


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
