"""Large files front to back at the disk's speed: in pieces, the next ones on their way while one is used.

A fast disk is read past the page cache (O_DIRECT): filling it costs the kernel 0.3 to 1.8 s of a core for each GB, more than
such a disk takes, and an epoch later the disk gives the same again. A slow disk is read through the page cache, which then
has the files for the next epoch. Which it is, is measured while reading.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Disk"]

PIECE = 2 << 20
READERS = 2
"""One reads while the other one's request is on its way to the disk."""
FAST = 0.5e9
"""Bytes a second from which on the page cache is not worth its cost."""
ENOUGH = 64 << 20
"""Bytes after which the speed is judged."""
_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP)
"""A file system's answers to O_DIRECT that it does not know."""


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A piece that is on its way."""

    number: int
    """Of its file."""
    file: int
    last: bool
    """Nothing of this file is asked for after it."""
    buffer: mmap.mmap
    read: Future[int]


class Disk:
    """Reads for one caller at a time; keeps its threads and buffers until `close`."""

    def __init__(self, *, passing: bool = True) -> None:
        """`passing=False`: never past the page cache, for what is read again at once."""
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="probewire-disk")
        # Memory maps begin on a page, as O_DIRECT wants it.
        self._buffers = deque(mmap.mmap(-1, PIECE) for _ in range(READERS + 1))
        self._can_pass: bool | None = None if passing and hasattr(os, "O_DIRECT") else False  # None: not tried yet
        self._bytes: int = 0
        self._seconds: float = 0.0
        """Of reads past the page cache."""

    def read(self, paths: Sequence[Path]) -> Generator[tuple[int, memoryview]]:
        """All of these files: (index of the path, the next bytes), which hold until the next are asked for.

        An empty file gives empty bytes. Close it to read something else before it has ended.
        """
        if len(self._buffers) <= READERS:
            raise RuntimeError("another read of this Disk has neither ended nor been closed")
        started, done = time.perf_counter(), 0
        passing = self._can_pass is not False and (self._bytes < ENOUGH or self._bytes >= FAST * self._seconds)
        coming: deque[_Asked] = deque()
        files: set[int] = set()
        asking = self._ask(paths, files, passing=passing)
        try:
            while True:
                while self._buffers and (asked := next(asking, None)):
                    coming.append(asked)
                if not coming:
                    break
                asked = coming[0]
                n = asked.read.result()
                yield asked.number, memoryview(asked.buffer)[:n]
                done += n
                self._buffers.append(coming.popleft().buffer)
                if asked.last:
                    files.remove(asked.file)
                    os.close(asked.file)
        finally:
            self._settle(coming)
            for file in files:
                os.close(file)
        if passing:
            self._bytes += done
            self._seconds += time.perf_counter() - started

    def _ask(self, paths: Sequence[Path], files: set[int], *, passing: bool) -> Iterator[_Asked]:
        for number, path in enumerate(paths):
            file = self._open(path, passing=passing)
            files.add(file)
            size = os.fstat(file).st_size
            for start in range(0, max(size, 1), PIECE):  # an empty file shows itself too
                read = self._threads.submit(_read, file, self._buffers[0], start, size)
                yield _Asked(number, file, start + PIECE >= size, self._buffers.popleft(), read)

    def _settle(self, coming: deque[_Asked]) -> None:
        """Where reading ends early: the readers must be done with files and buffers."""
        for asked in coming:
            if not asked.read.cancel():
                asked.read.exception()
            self._buffers.append(asked.buffer)

    def _open(self, path: Path, *, passing: bool) -> int:
        """`passing`: past the page cache, where the file system can."""
        if passing and self._can_pass is None:
            self._can_pass = _can_pass(path)
        return os.open(path, os.O_RDONLY | (os.O_DIRECT if passing and self._can_pass else 0))

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _can_pass(path: Path) -> bool:
    """Whether the file system can read past the page cache; some say so only when read from."""
    file = -1
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        os.preadv(file, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    finally:
        if file >= 0:
            os.close(file)
    return True


def _read(file: int, buffer: mmap.mmap, start: int, size: int) -> int:
    """Fill the buffer from `start` on, or to the file's end; gives the number of bytes."""
    done, wanted = 0, min(len(buffer), size - start)
    with memoryview(buffer) as whole:
        while done < wanted and (n := _read_some(file, whole[done:], start + done)):
            done += n
    return done


def _read_some(file: int, into: memoryview, start: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file, [into], start)
    found = os.pread(file, len(into), start)
    into[: len(found)] = found
    return len(found)
