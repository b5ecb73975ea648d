"""What a GGUF file says of itself and where its tensors lie. Nothing of it is believed before it is seen to be there."""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ....protos.errors import FailedPrecondition, InvalidArgument, ProbewireError

__all__ = ["GgufHeader", "GgufTensor", "gguf_in", "read_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""GGUF's types of values -> struct's."""
_MOST_AXES = 4
_AT_ONCE_BYTES = 1 << 22
"""Dequantised together: the temporary arrays on the way are several times as large."""
_SIZE = re.compile(r"_[SML]$")
"""What names a mixture of a type with wider ones."""
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the file stores it."""

    name: str
    shape: tuple[int, ...]
    """Of the weight, in transformers' order."""
    kind: int
    """ggml's number of the way in which it is stored."""
    start: int
    """Byte of the file."""
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A whole GGUF file of one language model."""

    path: Path
    architecture: str
    values: Mapping[str, Any]
    """Every key of the header: numbers, strings, lists."""
    tensors: tuple[GgufTensor, ...]

    def get(self, key: str) -> Any:
        """One value. Raises FailedPrecondition where the file has none."""
        if key not in self.values:
            raise FailedPrecondition(f"the GGUF file has no {key}; it was not written for this model")
        return self.values[key]

    @property
    def file_type(self) -> str:
        """How the weights are stored, by the name that files go by (Q4_K_M), or where that is not so, by their types."""
        from gguf import GGMLQuantizationType, LlamaFileType

        n_bytes: dict[str, int] = {}
        for tensor in self.tensors:
            if len(tensor.shape) > 1:
                name = GGMLQuantizationType(tensor.kind).name
                n_bytes[name] = n_bytes.get(name, 0) + tensor.n_bytes
        names = {one.value: one.name.removeprefix("MOSTLY_").removeprefix("ALL_") for one in LlamaFileType}
        number = self.values.get("general.file_type")
        said = names.get(number, "") if isinstance(number, int) else ""
        if _SIZE.sub("", said) in n_bytes:
            return said
        return ", ".join(sorted(n_bytes, key=lambda name: -n_bytes[name]))

    def weight(self, tensor: GgufTensor) -> npt.NDArray[np.float32]:
        """One tensor, dequantised."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType(tensor.kind)
        values = np.empty((math.prod(tensor.shape[:-1]), tensor.shape[-1]), np.float32)
        row_bytes = tensor.n_bytes // max(len(values), 1)
        step = max(_AT_ONCE_BYTES // max(row_bytes, 1), 1)
        try:
            for i in range(0, len(values), step):
                n_rows = min(step, len(values) - i)
                at = tensor.start + i * row_bytes
                stored = np.fromfile(self.path, dtype=np.uint8, count=n_rows * row_bytes, offset=at)
                values[i : i + n_rows] = dequantize(stored.reshape(n_rows, row_bytes), kind)
        except NotImplementedError as error:
            raise FailedPrecondition(
                f"{self.path.name} stores {tensor.name} as {kind.name}, which cannot be dequantised; take a file of another kind"
            ) from error
        return values.reshape(tensor.shape)


def gguf_in(source: Path) -> Path:
    """The one GGUF file that a path means: itself, or the only one of a folder that is a language model.

    Raises InvalidArgument.
    """
    if not source.is_dir():
        return source
    files = sorted(source.glob("*.gguf"))
    models = [file for file in files if not file.name.startswith("mmproj")]
    if len(models) == 1:
        return models[0]
    if files and not models:
        raise InvalidArgument(f"{source} holds {files[0].name} alone, which is {_PROJECTOR}")
    if not files:
        raise InvalidArgument(f"{source} holds no .gguf file")
    if all(_SPLIT.search(file.stem) for file in models):
        raise InvalidArgument(_split(models[0], len(models)))
    names = ", ".join(file.name for file in models[:4])
    raise InvalidArgument(f"{source} holds {len(models)} GGUF files ({names}); give the path of the one that is meant")


_PROJECTOR = "the part that reads images and no language model; fetch the model's own .gguf and give that"


def _split(path: Path, n_files: int) -> str:
    return (
        f"{path.name} is one of {n_files} parts of a split model; join them first: "
        f"llama-gguf-split --merge {path.name} whole.gguf"
    )


def read_header(path: Path) -> GgufHeader:
    """Raises NotFound's kin InvalidArgument for what is no whole GGUF file of a language model, FailedPrecondition without gguf."""
    _needs_gguf()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            header = _Reader(path, view).header()
    except (struct.error, UnicodeDecodeError, OverflowError, MemoryError, RecursionError) as error:
        raise InvalidArgument(f"{path} is cut off or damaged in its header ({error}); fetch it again") from error
    except ProbewireError:  # one of them is a ValueError too
        raise
    except ValueError as error:  # an empty file cannot be mapped
        raise InvalidArgument(f"{path} is no GGUF file: {error}") from error
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from error
    if (n_files := int(header.values.get("split.count", 0) or 0)) > 1:
        raise InvalidArgument(_split(path, n_files))
    if header.architecture == "clip" or header.values.get("general.type") == "mmproj":
        raise InvalidArgument(f"{path} is {_PROJECTOR}")
    return header


def _needs_gguf() -> None:
    if find_spec("gguf") is None:
        raise FailedPrecondition(
            "a GGUF file needs the package gguf to be read (the default model comes as one): pip install 'probewire[server]'"
        )


class _Reader:
    """Walks through the header. What lies beyond the end is a struct.error."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self._path, self._view, self._at = path, view, 0

    def header(self) -> GgufHeader:
        self._check_start()
        (n_tensors,), (n_values,) = self._take("<Q"), self._take("<Q")
        values: dict[str, Any] = {}
        for _ in range(n_values):
            key = self._string()
            values[key] = self._value(self._take("<I")[0])
        found = [self._tensor() for _ in range(n_tensors)]
        step = int(values.get("general.alignment", 32)) or 32
        base = -(-self._at // step) * step
        tensors = tuple(self._placed(base, *one) for one in found)
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise InvalidArgument(f"{self._path} names no general.architecture; it holds no model")
        return GgufHeader(self._path, architecture, values, tensors)

    def _check_start(self) -> None:
        if self._view[:4] != _MAGIC:
            raise InvalidArgument(f"{self._path} is no GGUF file: it does not begin with {_MAGIC.decode()}")
        self._at = 4
        (version,) = self._take("<I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            told = "is written for big-endian machines" if swapped else f"is GGUF version {version}"
            raise InvalidArgument(f"{self._path} {told}; versions 2 and 3 in little-endian order are read")

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._view, self._at)
        self._at += struct.calcsize(form)
        return values

    def _bytes(self, n: int) -> bytes:
        if n > len(self._view) - self._at:
            raise struct.error(f"{n} bytes wanted at {self._at} of {len(self._view)}")
        self._at += n
        return self._view[self._at - n : self._at]

    def _string(self) -> str:
        return self._bytes(self._take("<Q")[0]).decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._take("<IQ")
            if inner in _NUMBERS:
                form = np.dtype(_NUMBERS[inner]).newbyteorder("<")
                return cast("list[Any]", np.frombuffer(self._bytes(count * form.itemsize), dtype=form).tolist())
            if count > len(self._view):
                raise struct.error(f"a list of {count} in a file of {len(self._view)} bytes")
            return [self._value(inner) for _ in range(count)]
        if kind not in _NUMBERS:
            raise struct.error(f"a value of the unknown type {kind}")
        return self._take(f"<{_NUMBERS[kind]}")[0]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (n_axes,) = self._string(), self._take("<I")
        if n_axes > _MOST_AXES:
            raise struct.error(f"tensor {name} has {n_axes} axes")
        shape = tuple(reversed(self._take(f"<{n_axes}Q")))
        kind, offset = self._take("<IQ")
        return name, shape, kind, offset

    def _placed(self, base: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        from gguf import GGML_QUANT_SIZES

        try:
            per_block, block_bytes = next(sizes for one, sizes in GGML_QUANT_SIZES.items() if one.value == kind)
        except StopIteration:
            raise InvalidArgument(
                f"{self._path} stores {name} in ggml's way {kind}, which the installed gguf does not know; update gguf"
            ) from None
        n_bytes = math.prod(shape) // per_block * block_bytes
        if not shape or shape[-1] % per_block:
            raise InvalidArgument(
                f"{self._path} is damaged: {name} of shape {shape} cannot be stored in blocks of {per_block}"
            )
        if base + offset + n_bytes > len(self._view):
            raise InvalidArgument(
                f"{self._path} is cut off: {name} ends at byte {base + offset + n_bytes} and the file has {len(self._view)}; "
                "fetch it again"
            )
        return GgufTensor(name, shape, kind, base + offset, n_bytes)
