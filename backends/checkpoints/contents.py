"""Hashes of what files hold. Slow the first time, quick afterwards: they are kept, and hold while a file keeps size and times."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .download import sha256_of
from .progress import Report, ignore_progress

__all__ = ["content_hashes"]


def content_hashes(
    folder: Path, files: Sequence[Path], cache_dir: Path, report: Report = ignore_progress
) -> dict[str, str]:
    """File name -> hexadecimal sha256 of what it holds, for files of one folder. The hashes are kept in `cache_dir`."""
    sidecar = _sidecar(folder, cache_dir)
    known = _read(sidecar)
    current: dict[str, tuple[str, str]] = {}
    for file in files:
        stat = file.stat()
        stamp = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        old_stamp, contents = known.get(file.name, ("", ""))
        if old_stamp != stamp:
            contents = sha256_of(file, report)
        current[file.name] = (stamp, contents)
    if known | current != known:
        _write(sidecar, known | current)
    return {name: contents for name, (_, contents) in current.items()}


def _sidecar(folder: Path, cache_dir: Path) -> Path:
    """Never in the folder itself: it belongs to the user, and may be read-only."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return cache_dir / "hashes" / f"{name}.json"


def _read(sidecar: Path) -> dict[str, tuple[str, str]]:
    """File name -> its stamp and its contents' hash; nothing where the sidecar is missing or spoilt."""
    try:
        return {
            name: (str(stamp), str(contents)) for name, (stamp, contents) in json.loads(sidecar.read_text()).items()
        }
    except (AttributeError, OSError, TypeError, ValueError):
        return {}


def _write(sidecar: Path, content: dict[str, tuple[str, str]]) -> None:
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        temporary = sidecar.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(content))
        temporary.replace(sidecar)
    except OSError:
        # It only saves time: a cache folder that cannot be written must not stop a model from loading.
        return
