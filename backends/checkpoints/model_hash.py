"""Which weights exactly: one hash over a folder's config and weight files, and over what they were converted from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .contents import content_hashes
from .conversion.record import sources_hash
from .folder import CheckpointFolder
from .progress import Report, ignore_progress

__all__ = ["model_hash"]


def model_hash(folder: CheckpointFolder, cache_dir: Path, report: Report = ignore_progress) -> str:
    """Hexadecimal sha256 over config.json, the names, sizes and contents of the weight files, and the sources they name.

    The contents' hashes are kept in `cache_dir`, and hold while a file keeps its size and its times.
    """
    digest = hashlib.sha256((folder.path / "config.json").read_bytes())
    contents = content_hashes(folder.path, [file.path for file in folder.weights], cache_dir, report)
    for name, content in contents.items():
        size = (folder.path / name).stat().st_size
        digest.update(json.dumps([name, size, content]).encode())
    digest.update(sources_hash(folder.path).encode())
    return digest.hexdigest()
