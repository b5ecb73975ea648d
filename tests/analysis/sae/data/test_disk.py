"""Files come whole and in order, past the page cache or through it; whoever stops early leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.data import disk as module
from probewire.analysis.sae.data.disk import PIECE, Disk

SIZES = (0, 1, 4095, 4096, 4097, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5, 12)
DIRECT = getattr(os, "O_DIRECT", 0)
_PREADV: Any = getattr(os, "preadv", None)
needs_direct = pytest.mark.skipif(not DIRECT, reason="this system has no O_DIRECT")


def _files(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.bin" for number in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        path.write_bytes(np.random.default_rng(size).bytes(size))
    return paths


def _all(disk: Disk, paths: list[Path]) -> list[bytes]:
    found = [b""] * len(paths)
    for number, piece in disk.read(paths):
        found[number] += bytes(piece)
    return found


def _opened(monkeypatch: pytest.MonkeyPatch, *, refuse: int = 0) -> list[bool]:
    """Whether each file is opened past the page cache; `refuse`: an error that such an opening gets."""
    opened: list[bool] = []
    system: Any = os.open

    def watched(path: Any, flags: int, *more: Any) -> int:
        opened.append(bool(flags & DIRECT))
        if refuse and flags & DIRECT:
            raise OSError(refuse, os.strerror(refuse))
        return system(path, flags, *more)

    monkeypatch.setattr(os, "open", watched)
    return opened


def _open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()} if Path("/proc/self/fd").is_dir() else set()


def test_files_come_whole_and_in_order(tmp_path: Path) -> None:
    paths = _files(tmp_path)
    with Disk() as disk:
        for some in (paths, paths[::-1], [paths[-2]] * 3, []):
            assert _all(disk, some) == [path.read_bytes() for path in some]


def test_every_file_shows_itself(tmp_path: Path) -> None:
    paths = _files(tmp_path)
    with Disk() as disk:
        assert {number for number, _ in disk.read(paths)} == set(range(len(paths))), "the empty one too"


@pytest.mark.parametrize("taken", [1, 2, 7])
def test_stopping_early_leaves_nothing_behind(tmp_path: Path, taken: int) -> None:
    paths = _files(tmp_path)
    before = _open_files()
    with Disk() as disk:
        for _ in range(5):
            reading = disk.read(paths)
            for _ in range(taken):
                next(reading)
            if taken < 3:
                with pytest.raises(RuntimeError, match="another read"):
                    _all(disk, paths)
            reading.close()
            assert _open_files() == before
        assert _all(disk, paths) == [path.read_bytes() for path in paths]


def test_a_system_without_reading_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    paths = _files(tmp_path)
    with Disk() as disk:
        assert _all(disk, paths) == [path.read_bytes() for path in paths]


def test_files_that_are_read_are_closed(tmp_path: Path) -> None:
    """A window may have more files than a process may open."""
    paths = [tmp_path / str(number) for number in range(60)]
    for path in paths:
        path.write_bytes(b"x" * 10)
    before = len(_open_files())
    with Disk() as disk:
        assert max(len(_open_files()) for _ in disk.read(paths)) - before < 10


def test_readers_are_done_before_their_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, failed = _files(tmp_path), list[OSError]()

    def slow(file: int, into: memoryview, start: int) -> int:
        time.sleep(0.05)
        try:
            return os.preadv(file, [into], start)
        except OSError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(module, "_read_some", slow)
    with Disk() as disk:
        reading = disk.read([paths[-2], paths[-2]])
        next(reading)
        reading.close()
    assert not failed


@needs_direct
def test_what_is_read_again_at_once_goes_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, opened = _files(tmp_path), _opened(monkeypatch)
    with Disk(passing=False) as disk:
        assert _all(disk, paths) == [path.read_bytes() for path in paths]
    assert not any(opened)


def test_an_error_is_raised_and_the_next_read_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _files(tmp_path)
    with Disk() as disk:
        with pytest.raises(FileNotFoundError):
            _all(disk, [*paths, tmp_path / "absent"])
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", _broken)
            with pytest.raises(OSError, match="Input/output"):
                _all(disk, paths)
        assert _all(disk, paths) == [path.read_bytes() for path in paths]


def _broken(*_: Any) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@needs_direct
def test_a_fast_disk_is_read_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAST", 0)
    monkeypatch.setattr(module, "ENOUGH", 1)
    paths, opened = _files(tmp_path), _opened(monkeypatch)
    with Disk() as disk:
        for _ in range(2):
            _all(disk, paths)
    assert opened == [True] * (1 + 2 * len(paths)), "tried once, then read"


@needs_direct
def test_a_slow_disk_is_read_through_the_page_cache_once_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAST", float("inf"))
    monkeypatch.setattr(module, "ENOUGH", sum(SIZES) + 1)
    paths, opened = _files(tmp_path), _opened(monkeypatch)
    with Disk() as disk:
        for _ in range(3):
            assert _all(disk, paths) == [path.read_bytes() for path in paths]
    opened, n = opened[1:], len(paths)
    assert [opened[i : i + n] for i in (0, n, 2 * n)] == [[True] * n, [True] * n, [False] * n]


@needs_direct
def test_a_file_system_that_knows_no_such_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, opened = _files(tmp_path), _opened(monkeypatch, refuse=errno.EINVAL)
    with Disk() as disk:
        assert _all(disk, paths) == [path.read_bytes() for path in paths]
    assert opened == [True, *[False] * len(paths)], "asked once"


@needs_direct
def test_a_file_system_that_says_so_only_when_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _files(tmp_path)
    monkeypatch.setattr(os, "preadv", _unaligned)
    with Disk() as disk:
        assert _all(disk, paths) == [path.read_bytes() for path in paths]


def _unaligned(file: int, buffers: list[Any], start: int) -> int:
    if fcntl.fcntl(file, fcntl.F_GETFL) & DIRECT:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return _PREADV(file, buffers, start)


@needs_direct
def test_another_refusal_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _files(tmp_path)
    _opened(monkeypatch, refuse=errno.EACCES)
    with Disk() as disk, pytest.raises(PermissionError):
        _all(disk, paths)
