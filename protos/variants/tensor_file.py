"""A safetensors file from a stranger: its header is looked at whole before a number is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import safetensors.numpy as safetensors_numpy

from ..errors import InvalidArgument
from ..tensors import DTYPES, Array

__all__ = ["MAX_HEADER_BYTES", "MAX_TENSORS", "read_tensors", "written_tensors"]

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 20_000
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_numpy: Any = safetensors_numpy  # not annotated


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor lies among the bytes after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_tensors(data: bytes, what: str) -> dict[str, Array]:
    """Tensors by name, views of `data`. Raises InvalidArgument for anything but plain floats in a well-formed file."""
    header, body = _header(data, what)
    entries = sorted((_entry(name, told, what) for name, told in header.items()), key=lambda one: one.start)
    end = 0
    for entry in entries:
        if entry.start != end:
            raise InvalidArgument(f"{what}: {entry.name!r} begins at byte {entry.start} of the data, and not at {end}")
        end = entry.stop
    if end != len(data) - body:
        raise InvalidArgument(f"{what}: its tensors take {end:,} bytes, and {len(data) - body:,} are there")
    view = memoryview(data)[body:]
    return {entry.name: _array(view, entry) for entry in entries}


def written_tensors(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    return bytes(_numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata))


def _header(data: bytes, what: str) -> tuple[dict[str, Any], int]:
    """The header without its metadata, and where the numbers begin."""
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
    if not 2 <= size <= len(data) - 8:
        raise InvalidArgument(f"{what} is no safetensors file (of {len(data):,} bytes, a header of {size:,})")
    if size > MAX_HEADER_BYTES:
        raise InvalidArgument(f"{what} has a header of {size:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed")
    try:
        header = json.loads(data[8 : 8 + size].decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} has a header that is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise InvalidArgument(f"{what} has a header that is no object")
    found = cast("dict[str, Any]", header)
    found.pop("__metadata__", None)
    if len(found) > MAX_TENSORS:
        raise InvalidArgument(f"{what} holds {len(found):,} tensors; at most {MAX_TENSORS:,} are allowed")
    return found, 8 + size


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _entry(name: str, told: Any, what: str) -> _Entry:
    given = cast("dict[str, Any]", told) if isinstance(told, dict) else {}
    shape, offsets, dtype = _sizes(given.get("shape")), _sizes(given.get("data_offsets")), given.get("dtype")
    if given.keys() != {"shape", "data_offsets", "dtype"} or shape is None or offsets is None or len(offsets) != 2:
        raise InvalidArgument(f"{what}: {name[:80]!r} has no dtype, shape and data_offsets as safetensors writes them")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise InvalidArgument(f"{what}: {name[:80]!r} is {str(dtype)[:20]!r}; allowed: {', '.join(_DTYPES)}")
    expected = math.prod(shape) * DTYPES[_DTYPES[dtype]].itemsize
    if len(shape) > 8 or offsets[1] - offsets[0] != expected:
        raise InvalidArgument(
            f"{what}: {name[:80]!r} of shape {shape[:8]} and {dtype} takes {expected:,} bytes, its offsets say {offsets}"
        )
    return _Entry(name, _DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> list[int] | None:
    """The list, if it is one of integers of 0 or more."""
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [None]
    whole = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 62 for item in items)
    return items if whole else None


def _array(view: memoryview, entry: _Entry) -> Array:
    little = DTYPES[entry.dtype]
    return np.frombuffer(view[entry.start : entry.stop], dtype=little).reshape(entry.shape)
