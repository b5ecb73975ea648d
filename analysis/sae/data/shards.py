"""One shard of a store: a safetensors file that is whole or absent, with its checksums, and fast sequential reading.

There are two checksums. CRC-32 is taken at the first read of each shard, on the way: it finds what disks and copies do to
files. SHA-256, which is as slow as a fast disk, names the data and is for a full check.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition
from ....protos.tensors import numpy_dtype
from .disk import Disk

__all__ = ["ShardFile", "write_json", "write_shard"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
}
"""safetensors' name → ours."""


def write_shard(path: Path, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Write a shard; gives "file", "bytes", "sha256" and "crc32". After a crash the file is whole or not there."""
    save: Any = import_module("safetensors.numpy").save
    data: bytes = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    _write(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return {"file": path.name, "bytes": len(data), "sha256": digest, "crc32": zlib.crc32(data)}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    _write(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # or the rename may reach the disk before the data
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    stop: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard on the disk, against what the manifest says of it."""

    path: Path
    size: int
    """Bytes."""
    sha256: str
    crc32: int

    @classmethod
    def of(cls, folder: Path, entry: Mapping[str, Any]) -> ShardFile:
        """From what `write_shard` gave."""
        return cls(folder / entry["file"], entry["bytes"], entry["sha256"], entry["crc32"])

    def require_size(self) -> None:
        """Raise FailedPrecondition when the file is absent or of another size."""
        found = self.path.stat().st_size if self.path.is_file() else None
        if found != self.size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise FailedPrecondition(
                f"{self.path} {what}; the manifest says {self.size} bytes. Copy the store again, or collect it anew"
            )

    def verify(self) -> None:
        """Read the whole file and compare its SHA-256. Raises FailedPrecondition."""
        digest = hashlib.sha256()
        with Disk() as disk:
            for _, piece in disk.read([self.path]):
                digest.update(piece)
        self._compare("SHA-256", digest.hexdigest()[:16], self.sha256[:16], same=digest.hexdigest() == self.sha256)

    def check(self) -> None:
        """Read the whole file and compare its CRC-32. Raises FailedPrecondition."""
        crc = 0
        with Disk(passing=False) as disk:  # rows are read next, out of the page cache
            for _, piece in disk.read([self.path]):
                crc = zlib.crc32(piece, crc)
        self._compare_crc(crc)

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of one tensor; not verified."""
        with self.path.open("rb", buffering=0) as file:
            head = file.read(8)
            place = self._place(name, head + file.read(min(_header_bytes(head), self.size)))
            shape = (len(range(place.shape[0])[start:stop]), *place.shape[1:])
            out = np.empty(shape, dtype=place.dtype)
            row_bytes = (place.stop - place.start) // max(place.shape[0], 1)
            file.seek(place.start + start * row_bytes)
            target: memoryview = memoryview(cast("Any", _bytes(out)))
            done = 0
            while done < len(target):
                if not (n := file.readinto(target[done:])):
                    raise self._cut()
                done += n
        return out

    def take(self, name: str, pieces: Iterable[memoryview], out: NDArray[Any], *, check: bool) -> None:
        """One whole tensor into `out` [row, …] from the file's bytes; `check` compares their CRC-32 on the way."""
        target = _bytes(out)
        place: _Place | None = None
        crc = at = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc) if check else 0
            if place is None:  # the first piece has the header in it
                place = self._place(name, bytes(piece[: 8 + _header_bytes(piece)]))
                if len(target) != place.stop - place.start or out.dtype != place.dtype:
                    stored = f"{place.dtype} {list(place.shape)}"
                    raise FailedPrecondition(f"{self.path}: {name} is {stored}, not {out.dtype} {list(out.shape)}")
            first, last = max(place.start, at), min(place.stop, at + len(piece))
            if first < last:
                target[first - place.start : last - place.start] = np.frombuffer(
                    piece[first - at : last - at], np.uint8
                )
            at += len(piece)
        if check:
            self._compare_crc(crc)
        if place is None or at < place.stop:
            raise self._cut()

    def _cut(self) -> FailedPrecondition:
        return FailedPrecondition(f"{self.path} ends too early; copy the store again, or collect it anew")

    def _compare_crc(self, found: int) -> None:
        self._compare("CRC-32", f"{found:08x}", f"{self.crc32:08x}", same=found == self.crc32)

    def _compare(self, kind: str, found: str, expected: str, *, same: bool) -> None:
        if not same:
            raise FailedPrecondition(
                f"{self.path} is not what was written: its {kind} is {found}, the manifest says {expected}; copy the store "
                "again, or collect it anew"
            )

    def _place(self, name: str, head: bytes) -> _Place:
        """Where a tensor lies, from the file's first bytes: the header's length and the header."""
        try:
            item = json.loads(head[8:])[name]
            first, last = (len(head) + offset for offset in item["data_offsets"])
            return _Place(numpy_dtype(_DTYPES[item["dtype"]]), tuple(item["shape"]), first, last)
        except (KeyError, TypeError, ValueError) as error:
            raise FailedPrecondition(f"{self.path} is no shard of a store: {error!r}") from None


def _header_bytes(head: bytes | memoryview) -> int:
    return int.from_bytes(head[:8], "little")


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The array's own memory, to be written."""
    return array.reshape(-1).view(np.uint8)
