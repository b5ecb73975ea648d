"""One shard of a store: a safetensors file that is whole or absent, with its checksums, and fast sequential reading.

There are two checksums. CRC-32 is taken at the first read of each shard, by another thread than the one that reads: it
finds what disks and copies do to files. SHA-256, which is as slow as a fast disk, names the data and is for a full check.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import FailedPrecondition
from ...protos.tensors import numpy_dtype

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
_PIECE = 2 << 20
"""Bytes that are read at once: few enough that a piece is still in the cache when it is summed."""


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
        for piece in self._pieces():
            digest.update(piece)
        self._compare("SHA-256", digest.hexdigest()[:16], self.sha256[:16], same=digest.hexdigest() == self.sha256)

    def check(self) -> None:
        """Read the whole file and compare its CRC-32. Raises FailedPrecondition."""
        crc = 0
        for piece in self._pieces():
            crc = zlib.crc32(piece, crc)
        self._compare_crc(crc)

    def _pieces(self) -> Iterator[memoryview]:
        piece = memoryview(bytearray(max(1, min(_PIECE, self.size))))
        with self.path.open("rb", buffering=0) as file:
            while n := file.readinto(piece):
                yield piece[:n]

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of one tensor; not verified."""
        place = self._places()[name]
        shape = (len(range(place.shape[0])[start:stop]), *place.shape[1:])
        out = np.empty(shape, dtype=place.dtype)
        row_bytes = (place.stop - place.start) // max(place.shape[0], 1)
        with self.path.open("rb", buffering=0) as file:
            file.seek(place.start + start * row_bytes)
            deque(_fill(file, _bytes(out), self.path), maxlen=0)
        return out

    def read_into(self, out: NDArray[Any], name: str, *, check: bool) -> None:
        """Read one whole tensor into `out` [row, …], front to back; `check` compares the file's CRC-32 on the way."""
        place = self._places()[name]
        target = _bytes(out)
        if len(target) != place.stop - place.start or out.dtype != place.dtype:
            raise FailedPrecondition(f"{self.path}: {name} is {place.dtype} {list(place.shape)}, not {list(out.shape)}")
        with self.path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # the disk goes on while a piece is summed; macOS has no such call
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            if not check:
                file.seek(place.start)
                deque(_fill(file, target, self.path), maxlen=0)
                return
            crc = _summed(_fill(file, target, self.path), zlib.crc32(file.read(place.start)))
            self._compare_crc(zlib.crc32(file.read(), crc))

    def _compare_crc(self, found: int) -> None:
        self._compare("CRC-32", f"{found:08x}", f"{self.crc32:08x}", same=found == self.crc32)

    def _compare(self, kind: str, found: str, expected: str, *, same: bool) -> None:
        if not same:
            raise FailedPrecondition(
                f"{self.path} is not what was written: its {kind} is {found}, the manifest says {expected}; copy the store "
                "again, or collect it anew"
            )

    def _places(self) -> dict[str, _Place]:
        try:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(length)) if length <= self.size else {}
            return {
                name: _Place(
                    numpy_dtype(_DTYPES[item["dtype"]]),
                    tuple(item["shape"]),
                    8 + length + item["data_offsets"][0],
                    8 + length + item["data_offsets"][1],
                )
                for name, item in header.items()
                if name != "__metadata__"
            }
        except (KeyError, TypeError, ValueError) as error:
            raise FailedPrecondition(f"{self.path} is no shard of a store: {error!r}") from None


def _bytes(array: NDArray[Any]) -> memoryview:
    """The array's own memory, to be written."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def _fill(file: Any, target: memoryview, path: Path) -> Iterator[memoryview]:
    """Fill `target` from the file, front to back; gives each piece that was read."""
    done = 0
    while done < len(target):
        n: int = file.readinto(target[done : done + _PIECE])
        if not n:
            raise FailedPrecondition(f"{path} ends too early; copy the store again, or collect it anew")
        yield target[done : done + n]
        done += n


def _summed(pieces: Iterable[memoryview], crc: int) -> int:
    """The checksum with that of all pieces. Each is summed while the next one is read."""
    with ThreadPoolExecutor(1, thread_name_prefix="probewire-crc") as thread:
        sums: Future[int] | None = None
        for piece in pieces:
            before = crc if sums is None else sums.result()
            sums = thread.submit(zlib.crc32, piece, before)
        return crc if sums is None else sums.result()
