"""Writes a plain checkpoint folder, one tensor in memory at a time, whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.tensors import Array
from ..progress import Progress, Report
from .source import FLOATS, NUMPY, Planned

__all__ = ["clear_left_overs", "made_whole", "write_weights"]

MOST_SHARD_BYTES = 5_000_000_000
_SPARE_BYTES = 50_000_000
"""For config, tokenizer and index."""
_ALIGNED = 8


def write_weights(folder: Path, plan: Sequence[Planned], report: Report) -> None:
    """Write model.safetensors, or shards and their index. Raises InvalidArgument for what a dtype does not hold."""
    total = sum(planned.n_bytes for planned in plan)
    _check_space(folder, total)
    shards = _shards(plan)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    done = 0
    report(Progress("convert", 0, total))
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for planned in shard:
                file.write(_bytes_of(planned).data)
                done += planned.n_bytes
                report(Progress("convert", done, total))
    if len(shards) > 1:
        where = {planned.name: name for name, shard in zip(names, shards, strict=True) for planned in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def made_whole(out: Path) -> Generator[Path]:
    """A folder beside `out` to write into, which takes its name when all went well and is gone when not.

    Of two that make the same one at once, one does; the other raises FailedPrecondition.
    """
    with _disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        making = out.with_name(f".{out.name}.making-{uuid.uuid4().hex[:8]}")
        making.mkdir()
        try:
            yield making
            _take_name(making, out)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def clear_left_overs(out: Path) -> None:
    """Remove what killed processes left; for a caller who holds the lock of `out`."""
    for left_over in out.parent.glob(f".{out.name}.making-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def _take_name(making: Path, out: Path) -> None:
    try:
        making.rename(out)  # over an empty folder too, as POSIX has it
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise FailedPrecondition(
            f"{out} was made by somebody else meanwhile; look at it, or give another --out"
        ) from error


@contextmanager
def _disk_errors(out: Path) -> Generator[None]:
    """A full or read-only disk is no fault of ours."""
    try:
        yield
    except OSError as error:
        if error.filename and not Path(error.filename).is_relative_to(out.parent):
            raise InvalidArgument(f"{error.filename} cannot be read: {error.strerror}") from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise FailedPrecondition(
            f"{out} cannot be written: {'the disk is full' if full else error.strerror or error}; nothing was left behind. "
            "Make room or give write permission, or choose another place (--out, --cache-dir)"
        ) from error


def _check_space(folder: Path, total: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < total + _SPARE_BYTES:
        raise FailedPrecondition(
            f"the converted checkpoint takes {total / 1e9:.2f} GB, and there are {free / 1e9:.2f} GB free where {folder.parent} "
            "lies; make room, or choose another place (--out, --cache-dir)"
        )


def _shards(plan: Sequence[Planned]) -> list[list[Planned]]:
    """In order of their plan, as many to a file as fit; inside a file the wide dtypes first, so that all are aligned."""
    shards: list[list[Planned]] = [[]]
    room = MOST_SHARD_BYTES
    for planned in plan:
        if shards[-1] and planned.n_bytes > room:
            shards.append([])
            room = MOST_SHARD_BYTES
        shards[-1].append(planned)
        room -= planned.n_bytes
    return [sorted(shard, key=lambda planned: -NUMPY[planned.dtype].itemsize) for shard in shards]


def _header(shard: Sequence[Planned]) -> bytes:
    """The length and the JSON that begin a safetensors file, filled up to a multiple of eight."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for planned in shard:
        span = [start, start + planned.n_bytes]
        entries[planned.name] = {"dtype": planned.dtype, "shape": list(planned.shape), "data_offsets": span}
        start = span[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(planned: Planned) -> Array:
    """uint8 of the tensor in its dtype."""
    made = planned.make()
    assert made.shape == planned.shape, (planned.name, made.shape, planned.shape)
    kind = NUMPY[planned.dtype]
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(made.astype(kind, copy=False))
    if planned.computed and planned.dtype in FLOATS.values() and not np.isfinite(array).all():
        raise InvalidArgument(
            f"{planned.name} has values that {planned.dtype} does not hold, or none at all (NaN); give --dtype float32, or "
            "fetch the checkpoint again"
        )
    return array.reshape(-1).view(np.uint8)
