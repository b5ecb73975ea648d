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
from ..checkpoints.quantised import Packed, packed_tensors, scheme_of
from ..checkpoints.quantised.packed import Stored
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
_CODES = {"U8": "uint8", "U32": "uint32", "F8_E4M3": "uint8", "F8_E8M0": "uint8"}
"""Packed weights, as arrays."""


class CheckpointWeights:
    """The weights of one checkpoint folder; those that it holds packed under the names and shapes that they have unpacked; of
    one that also sees or hears, the text model's, under its own names.

    Raises InvalidArgument for such a one without a text model, or with weights that belong to nothing known, and where the
    config says something else of how they are packed than they are.
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
        stored = {name: Stored(dtype, shape) for name, (_, dtype, shape, _) in self._entries.items()}
        self.scheme = scheme_of(folder)
        """How it is quantised; None where it is not."""
        self.packed: dict[str, Packed] = packed_tensors(self.scheme, stored)

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's name and shape."""
        parts = {part for packed in self.packed.values() for part in packed.parts}
        plain = {name: shape for name, (_, _, shape, _) in self._entries.items() if name not in parts}
        return plain | {name: packed.shape for name, packed in self.packed.items()}

    def nbytes(self, itemsize: int | None = None, *, unpacked: bool = False) -> int:
        """Bytes of all of them as stored, or with floats of `itemsize` bytes; `unpacked`: those that are packed too."""
        parts = {part for packed in self.packed.values() for part in packed.parts} if unpacked else set[str]()
        total = sum(math.prod(packed.shape) for packed in self.packed.values()) * (itemsize or 2) if unpacked else 0
        for name, (_, dtype, shape, _) in self._entries.items():
            bits = BITS.get(dtype, 8)
            if itemsize is not None and dtype in ("F64", "F32", "F16", "BF16"):
                bits = 8 * itemsize
            total += 0 if name in parts else math.prod(shape) * bits // 8
        return total

    def float_dtype(self) -> str:
        """What most of the weights that are floats are stored as; of packed ones, their scales."""
        found: dict[str, int] = {}
        scales = {part: math.prod(packed.shape) for packed in self.packed.values() for part in packed.parts[1:2]}
        for name, (_, dtype, shape, _) in self._entries.items():
            if dtype in ("F32", "F16", "BF16"):
                found[dtype] = found.get(dtype, 0) + scales.get(name, math.prod(shape))
        return _DTYPES[max(found, key=found.__getitem__)] if found else "float32"

    def get(self, name: str) -> Array:
        """One weight; one that is stored packed in float32, as its codes and scales say.

        Raises NotFound with a few names that are like it, Unsupported for codes whose format is not known here.
        """
        if name in self.packed:
            packed = self.packed[name]
            return np.ascontiguousarray(packed.values(*(self._part(part) for part in packed.parts)))
        known = self.names()
        if name not in known:
            near = [n for n in known if n.rsplit(".", 2)[-2:] == name.rsplit(".", 2)[-2:]]
            some = ", ".join((near or list(known))[:4])
            raise NotFound(f"no weight {name!r} in the checkpoint; for example {some}")
        path, dtype, shape, start = self._entries[name]
        if dtype not in _DTYPES:
            raise Unsupported(
                f"weight {name!r} is stored as packed codes ({dtype}, {list(shape)}), which are not its values; read the "
                "weights of the checkpoint that was quantised, or the model's activations"
            )
        kind = numpy_dtype(_DTYPES[dtype])
        return np.fromfile(path, dtype=kind, count=int(np.prod(shape)), offset=start).reshape(shape)

    def _part(self, name: str) -> Array:
        """Codes as they are stored, scales in float32."""
        path, dtype, shape, start = self._entries[name]
        kind = numpy_dtype(_DTYPES[dtype]) if dtype in _DTYPES else np.dtype(_CODES[dtype])
        found = np.fromfile(path, dtype=kind, count=math.prod(shape), offset=start).reshape(shape)
        return found if dtype in _CODES else found.astype(np.float32)

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
