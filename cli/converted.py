"""What conversions have left in the cache, for `probewire convert --list`, `--clean` and `--remove`, and a line of `serve`."""

from __future__ import annotations

import time
from pathlib import Path

from ..backends.checkpoints import default_cache_dir
from ..backends.checkpoints.conversion.kept import (
    CONVERTED,
    KeptFolder,
    kept_folders,
    remove_kept,
    remove_left_overs,
)

__all__ = ["clean", "list_converted", "remove", "told_of_converted"]

DAY_S = 24 * 3600


def list_converted(cache_dir: Path | None) -> str:
    """A paragraph for each folder, and their sum."""
    kept = kept_folders(cache_dir or default_cache_dir())
    place = (cache_dir or default_cache_dir()) / CONVERTED
    if not kept:
        return f"nothing is converted in {place}"
    total = sum(one.n_bytes for one in kept)
    return "\n".join([*map(_told, kept), f"{_gb(total)} in {len(kept)} folders of {place}"])


def clean(cache_dir: Path | None) -> str:
    """Remove those whose sources are gone, and what killed conversions left; what was done."""
    cache_dir = cache_dir or default_cache_dir()
    left = remove_left_overs(cache_dir)
    gone = [remove_kept(cache_dir, one.folder.name) for one in kept_folders(cache_dir) if one.gone]
    lines = [f"removed {one.folder.name} ({_gb(one.n_bytes)}): {one.gone[0]} is gone" for one in gone]
    lines += [f"removed what interrupted conversions left ({_gb(left)})"] if left else []
    return "\n".join(lines) or "nothing to remove: the sources of all folders are there, or nobody knows where they lay"


def remove(cache_dir: Path | None, names: list[str]) -> str:
    """Remove those of these names; what was done. Raises as `remove_kept`."""
    removed = [remove_kept(cache_dir or default_cache_dir(), name) for name in names]
    return "\n".join(f"removed {one.folder.name} ({_gb(one.n_bytes)})" for one in removed)


def told_of_converted(cache_dir: Path | None) -> str:
    """One line; empty where there are none."""
    kept = kept_folders(cache_dir or default_cache_dir())
    if not kept:
        return ""
    total, gone = sum(one.n_bytes for one in kept), sum(one.n_bytes for one in kept if one.gone)
    told = f"{len(kept)} converted checkpoints take {_gb(total)} of {kept[0].folder.parent}"
    if gone:
        return f"{told}, {_gb(gone)} of it of sources that are gone (`probewire convert --clean` removes them)"
    return f"{told} (`probewire convert --list` shows them)"


def _told(one: KeptFolder) -> str:
    days = max(0, round((time.time() - one.used_s) / DAY_S))
    where = ", ".join(f"{path}{' (gone)' if path in one.gone else ''}" for path in one.sources) or "not known"
    return (
        f"{one.folder.name}\n  {_gb(one.n_bytes)}, last used {days} days ago\n"
        f"  made of {one.origin or 'an unknown source'}\n  from    {where}"
    )


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e7 else f"{n_bytes / 1e3:.0f} kB"
