"""Tensors of a folder by name, read one at a time; and the tensors of the folder that is to be written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from ....protos.errors import InvalidArgument
from ....protos.tensors import Array
from ..folder import weight_paths
from ..weight_file import read_weight_file

__all__ = ["FLOATS", "NUMPY", "FileTensors", "Planned", "Stored", "Tensors", "copied", "refuse_left_over", "weights_of"]

NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
}
"""safetensors' name -> numpy's."""
_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_scale", ".weight_zero_point")
FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Our name of what weights are written as -> safetensors'."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a tensor is before it is read."""

    dtype: str
    """As safetensors writes it."""
    shape: tuple[int, ...]


class Tensors(Protocol):
    """Tensors that can be looked up before they are read."""

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Every tensor's name, dtype and shape."""
        ...

    def get(self, name: str) -> Array:
        """One tensor, as it is stored."""
        ...


class FileTensors:
    """Those of safetensors files."""

    def __init__(self, paths: list[Path]) -> None:
        self.stored: dict[str, Stored] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        for path in paths:
            file = read_weight_file(path)
            for name, shape in file.shapes.items():
                self.stored[name] = Stored(file.dtypes[name], shape)
                self._places[name] = (path, file.starts[name])

    @classmethod
    def of(cls, folder: Path) -> FileTensors:
        """Those of a checkpoint folder; under any name where its one file has not the usual one."""
        return cls(weights_of(folder))

    def get(self, name: str) -> Array:
        """See Tensors."""
        stored, (path, start) = self.stored[name], self._places[name]
        if stored.dtype not in NUMPY:
            raise InvalidArgument(f"{path} stores {name} as {stored.dtype}, which cannot be converted")
        kind, count = NUMPY[stored.dtype], math.prod(stored.shape)
        return np.fromfile(path, dtype=kind, count=count, offset=start).reshape(stored.shape)


def weights_of(folder: Path) -> list[Path]:
    """Files that hold a folder's weights. GPTQ's first writers named theirs after the method."""
    odd = sorted(folder.glob("*.safetensors"))
    if len(odd) == 1 and not odd[0].name.startswith("model"):
        return odd
    return weight_paths(folder)


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written: what it will be, and how to come by it."""

    name: str
    dtype: str
    """As safetensors writes it."""
    shape: tuple[int, ...]
    make: Callable[[], Array]
    """Of this shape, in any float dtype where this one is a float; called once."""
    computed: bool = True
    """Its numbers are not the stored ones to the bit, so they are looked at."""

    @property
    def n_bytes(self) -> int:
        """On the disk."""
        return math.prod(self.shape) * NUMPY[self.dtype].itemsize


def copied(source: Tensors, name: str, dtype: str) -> Planned:
    """A tensor as it is stored; a float one in `dtype` (a wire name) unless that is "auto"."""
    stored = source.stored[name]
    if stored.dtype not in NUMPY:
        raise InvalidArgument(f"the tensor {name} is stored as {stored.dtype}, which cannot be copied")
    kind = FLOATS[dtype] if dtype != "auto" and stored.dtype in FLOATS.values() else stored.dtype
    return Planned(name, kind, stored.shape, lambda: source.get(name), kind != stored.dtype)


def refuse_left_over(names: list[str]) -> None:
    """Raise InvalidArgument for a part of a packed matrix among tensors that are to be copied as they are."""
    parts = [name for name in names if name.endswith(_PARTS)]
    if parts:
        raise InvalidArgument(
            f"{len(parts)} tensors belong to packed matrices of which other parts are missing, or that are packed in another way, "
            f"{parts[0]} first; fetch the checkpoint again"
        )
