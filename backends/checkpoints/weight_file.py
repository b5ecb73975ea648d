"""A safetensors file as its header tells it: which tensors, and how many bytes there must be. Loads no weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument

__all__ = ["BITS", "WeightFile", "read_weight_file"]

_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_LFS_POINTER = b"version https://git-lfs"
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one element. A dtype that is not here is taken at its header's word."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One whole safetensors file."""

    path: Path
    n_bytes: int
    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape."""
    dtypes: dict[str, str]
    """Tensor name -> dtype, as safetensors writes it."""
    starts: dict[str, int]
    """Tensor name -> the byte of the file at which it begins."""


def read_weight_file(path: Path) -> WeightFile:
    """Read and check the header. Raises InvalidArgument for a file that is cut short or is no safetensors file."""
    found = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == _LFS_POINTER[:8]:
            raise InvalidArgument(f"{path} is a Git LFS pointer, not weights; run `git lfs pull` in its folder")
        n_header = int.from_bytes(start, "little")
        if len(start) < 8 or n_header > _MAX_HEADER_BYTES:
            raise InvalidArgument(f"{path} is not a safetensors file ({found} bytes); fetch it again")
        if found < 8 + n_header:
            raise _cut_short(path, "at least ", 8 + n_header, found)
        header = _parse(path, file.read(n_header))
    tensors = _tensors(path, header)
    expected = 8 + n_header + _data_bytes(path, tensors)
    if found < expected:
        raise _cut_short(path, "", expected, found)
    if found > expected:
        raise InvalidArgument(
            f"{path} is too long: its header promises {expected} bytes and it has {found}; fetch it again"
        )
    return WeightFile(
        path,
        found,
        {tensor.name: tensor.shape for tensor in tensors},
        {tensor.name: tensor.dtype for tensor in tensors},
        {tensor.name: 8 + n_header + tensor.span[0] for tensor in tensors},
    )


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int]
    """First byte after the header, and the byte after the last."""


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header: Any = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(
            f"the header of {path} is not JSON, so it is no safetensors file; fetch it again"
        ) from error
    if not isinstance(header, dict):
        raise InvalidArgument(
            f"the header of {path} is not a JSON object, so it is no safetensors file; fetch it again"
        )
    return cast("dict[str, Any]", header)


def _tensors(path: Path, header: dict[str, Any]) -> list[_Tensor]:
    try:
        return [
            _Tensor(name, entry["dtype"], tuple(map(int, entry["shape"])), (int(first), int(last)))
            for name, entry in header.items()
            if name != "__metadata__"
            for first, last in [entry["data_offsets"]]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"the header of {path} is not that of a safetensors file; fetch it again") from error


def _data_bytes(path: Path, tensors: list[_Tensor]) -> int:
    """How many bytes follow the header; the tensors must fill them without a gap."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.span):
        first, last = tensor.span
        bits = BITS.get(tensor.dtype)
        n_bytes = last - first if bits is None else math.prod(tensor.shape) * bits // 8
        if first != end or last - first != n_bytes:
            raise InvalidArgument(f"the header of {path} places the tensor {tensor.name} wrongly; fetch the file again")
        end = last
    return end


def _cut_short(path: Path, qualifier: str, expected: int, found: int) -> InvalidArgument:
    return InvalidArgument(
        f"{path} is cut short: {qualifier}{expected} bytes expected, {found} found; fetch or copy it again"
    )
