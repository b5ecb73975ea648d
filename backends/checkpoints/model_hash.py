"""Which weights exactly: one hash over a folder's config and weight files. Slow the first time, quick afterwards."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from .download import sha256_of
from .folder import CheckpointFolder
from .progress import Report, ignore_progress

__all__ = ["model_hash"]


def model_hash(folder: CheckpointFolder, cache_dir: Path, report: Report = ignore_progress) -> str:
    """Hexadecimal sha256 over config.json and the names, sizes and contents of the weight files.

    The contents' hashes are kept in `cache_dir`, and hold while a file keeps its size and its times.
    """
    sidecar = _sidecar(folder.path, cache_dir)
    known = _read(sidecar)
    digest = hashlib.sha256((folder.path / "config.json").read_bytes())
    current: dict[str, tuple[str, str]] = {}
    for file in folder.weights:
        stat = file.path.stat()
        stamp = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        old_stamp, contents = known.get(file.path.name, ("", ""))
        if old_stamp != stamp:
            contents = sha256_of(file.path, report)
        current[file.path.name] = (stamp, contents)
        digest.update(json.dumps([file.path.name, stat.st_size, contents]).encode())
    if current != known:
        _write(sidecar, current)
    return digest.hexdigest()


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
